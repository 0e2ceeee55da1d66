"""What a wiring says of a denoiser: where its blocks are, what flows through them, what its linears do."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .ports import Ports, returned, several


@dataclass(frozen=True)
class CachedModule:
    """A module of a block whose output, before its gate, a per-module cache keeps.

    Attributes:
        path: inside the block.
        role: "attention", "mlp", or "both" where one projection ends both.
        spares: modules whose output nobody reads once this one is predicted.
        norms: modules that make its input and nothing else's, token by token, of their first argument (B, N, D), and
            return it alone or first; what they return beside it, gates and shifts, depends on no token.
        values: the linear that makes the attention values of the same tokens; "" where it is not known.
    """

    path: str
    role: str
    spares: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    values: str = ""


def present(block: nn.Module, modules: Sequence[CachedModule]) -> list[CachedModule]:
    """Those of a list's modules that this block has: blocks of a list may differ."""
    there = {path for path, _ in block.named_modules()}
    return [module for module in modules if there.issuperset((module.path, *module.spares, *module.norms))]


def kept(modules: Sequence[CachedModule], roles: Sequence[str]) -> list[CachedModule]:
    """The modules of one block to keep: one that ends both roles, where both are asked for and there is one."""
    joint = [m for m in modules if m.role == "both" and set(roles) == {"attention", "mlp"}]
    return joint or [m for m in modules if m.role in roles]


@dataclass(frozen=True)
class Along:
    """How an argument of a block runs along the tokens.

    Attributes:
        streams: whose tokens it holds, one stream after the other.
        axis: of the argument, or of its tensors where it is a tuple.
        only: which tensors of a tuple run along them, such as one of a table for each stream; () for all.
    """

    streams: tuple[str, ...]
    axis: int = 0
    only: tuple[int, ...] = ()

    def cut(self, value: Any, counts: Mapping[str, int], output: str, tokens: torch.Tensor) -> Any:
        """The argument for some tokens of the output stream, and all of the others.

        Args:
            value: the whole argument.
            counts: tokens of each stream.
            output: the output stream.
            tokens: places in it, in the order that is wanted.
        """
        places, start = [], 0
        for name in self.streams:
            count = counts.get(name, 0)
            places.append(start + (tokens if name == output else torch.arange(count, device=tokens.device)))
            start += count
        left = torch.cat(places)
        return returned(
            tensor.index_select(self.axis, left) if number in (self.only or (number,)) else tensor
            for number, tensor in enumerate(several(value))
        )


@dataclass(frozen=True)
class SelfAttention:
    """How attention layers attend over the latent's tokens.

    Attributes:
        others: where other tokens, text mostly, lie in the sequence: "before" or "behind" the latent's, "" where there
            are none.
        numbers: of one sample of the latent for each of its tokens, where there are others; 0 where the configuration
            says it.
        hides_text: a mask over keys hides others alone.
        steady: its mask is the same on every step of a request.
    """

    others: str = ""
    numbers: int = 0
    hides_text: bool = False
    steady: bool = False

    def own_tokens(self, latent: Any, numbers: int = 0) -> int:
        """How many are the latent's; 0 where that is not a whole number, or not the same for all samples.

        Args:
            latent: (B, ...), or one tensor for each sample.
            numbers: what the configuration says.
        """
        samples = latent if isinstance(latent, list | tuple) else [latent[0]]
        sizes, each = {sample.numel() for sample in samples}, self.numbers or numbers
        return 0 if len(sizes) != 1 or (size := sizes.pop()) % each else size // each


def numbered(path: str) -> str:
    """A module's path with a star for every number: members of a list are alike."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


@dataclass(frozen=True)
class Wiring:
    """A family, as data.

    Attributes:
        family: name used in facts and recipes.
        classes: names of the diffusers classes it covers.
        block_lists: module lists in the order they run.
        streams: what each block takes and returns: stream name to argument name, in the order of the return value.
        output_stream: the stream the head reads, that of the latent where it reads several.
        also_read: further streams that are read behind the last block.
        linears: shell wildcards, role by role, of the linears worth quantizing; paths inside a block.
        sensitive: shell wildcards, role by role, of the linears whose error does not average out; paths in
            the denoiser.
        modules: what a per-module cache keeps, by block list: the modules whose output it predicts.
        modulation: (block, its arguments) to the first block's modulated input (B, N, D), which TeaCache looks at.
        grid: (denoiser, its arguments) to the grid of the latent's tokens in this very call: (rows, columns), or
            (frames, rows, columns) of a video; () where they lie on none. The last axis runs fastest. The output stream
            may hold more tokens than these: text, padding.
        inputs: arguments of the denoiser with a leading batch dimension; () where a batch can only run as a whole.
        residuals: arguments of the denoiser that a control net makes anew on every step; all others but the latent and
            its time count as the same on every step of a request.
        batched: other arguments of a block with a leading batch dimension.
        constants: modules of the denoiser whose output is the same on every step of a request.
        makers: modules of the denoiser, or lists of them, that make the output stream where the blocks begin; only
            blocks read it.
        unread: other modules, or lists of them, that only blocks read.
        along: arguments with an entry per token, such as masks and rotary tables.
        same_input: shell wildcards, list by list, of the linears of a block that read the very same tensor.
        flow_scale: of a class of rectified flow under any sampler, whose output is noise - x0: its time divided by this
            is sigma. 0 where only a pipeline tells.
        halves: whether a pipeline runs both guidance branches in one call, each in one half of the batch.
        latent, time: arguments of the denoiser: the noisy latent, and its time.
        beside: arguments that its further outputs are laid out as, such as noisy sound; () where it returns one output.
        returns: what it returns with `return_dict`, made of its outputs; None is diffusers' usual.
        times: further arguments that change on every step, such as the time that a step ends at.
        ports: where a block list's streams are; that of `streams`, in this order, for lists that are not named.
        patch: latent pixels of a token along rows and columns, or frames, rows and columns; () where the latent comes
            packed.
        numbers: per token of the output stream in the latent and in the output, or what these are in proportion to
            where a token's are not known.
        width_from: path of a linear in the first block whose inputs are as many as the stream is wide; "" where the
            configuration says it.
        attention: what attends over the latent's tokens, by path with a star for every number.
        lacks: what this model does not get, and why: "blocks", "range", "modules", "modulation", ...
        how: field to how it was found, where it was derived.
    """

    family: str
    classes: tuple[str, ...]
    block_lists: tuple[str, ...]
    streams: dict[str, str]
    output_stream: str
    linears: dict[str, tuple[str, ...]]
    sensitive: dict[str, tuple[str, ...]]
    modules: dict[str, tuple[CachedModule, ...]]
    modulation: Callable[[Any, Mapping[str, Any]], torch.Tensor]
    grid: Callable[[Any, Mapping[str, Any]], tuple[int, ...]]
    inputs: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    batched: tuple[str, ...] = ("temb",)
    constants: tuple[str, ...] = ()
    makers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    along: Mapping[str, Along] = field(default_factory=dict)
    same_input: tuple[tuple[str, ...], ...] = ()
    flow_scale: float = 0.0
    halves: bool = False
    also_read: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    returns: Callable[..., Any] | None = None
    latent: str = "hidden_states"
    time: str = "timestep"
    times: tuple[str, ...] = ()
    ports: Mapping[str, Ports] = field(default_factory=dict)
    patch: tuple[int, ...] = ()
    numbers: tuple[int, int] = (0, 0)
    width_from: str = ""
    attention: Mapping[str, SelfAttention] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    how: Mapping[str, str] = field(default_factory=dict)

    def blocks(self, denoiser: nn.Module) -> list[tuple[str, nn.Module]]:
        """(path, block) in running order."""
        return [
            (f"{name}.{index}", block)
            for name in self.block_lists
            for index, block in enumerate(denoiser.get_submodule(name).children())
        ]

    def block_of(self, path: str) -> str:
        """The path of the block that a module of this path is in; "" outside of blocks."""
        for name in self.block_lists:
            index, _, inside = path.removeprefix(f"{name}.").partition(".")
            if path.startswith(f"{name}.") and inside:
                return f"{name}.{index}"
        return ""

    def ports_of(self, path: str, arguments: Sequence[str]) -> Ports:
        """Where the streams of a block are that takes these arguments."""
        known = self.ports.get(path.rpartition(".")[0])
        # Some blocks take fewer streams than others.
        return known or Ports.in_order({s: name for s, name in self.streams.items() if name in arguments})

    @property
    def read(self) -> tuple[str, ...]:
        """The streams that are read behind the last block, that of the latent first."""
        return self.output_stream, *self.also_read

    @property
    def joins(self) -> tuple[str, ...]:
        """Block lists that are given several streams one after the other in one."""
        return tuple(path for path, ports in self.ports.items() if ports.joined)

    def idle(self, denoiser: nn.Module, entry: bool = False) -> list[nn.Module]:
        """Modules that need not run where no block does.

        Args:
            entry: whether the output stream is needed where the blocks begin.
        """
        paths = (*(() if entry else self.makers), *self.unread)
        return [module for path in paths for module in called(denoiser.get_submodule(path))]

    def role(self, path_in_block: str) -> str | None:
        """The role of a linear ("attention", "mlp"), or None where it should stay as it is."""
        return _role_of(path_in_block, self.linears)

    def sensitivity(self, path: str) -> str:
        """The role of a linear whose error does not average out, or "unknown role" where no list names it."""
        return _role_of(path, self.sensitive) or "unknown role"


def _role_of(path: str, roles: Mapping[str, tuple[str, ...]]) -> str | None:
    for role, patterns in roles.items():
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
            return role
    return None


def called(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or those in it where it is a list or a dictionary of them and not called itself."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for part in module.children():
            yield from called(part)
    else:
        yield module
