"""What the linears of a denoiser do: by the modules they are in, the rows they are given, and when they run."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from .blocks import BlockList
from .trace import Trace

ATTENTION, MLP = "attention", "mlp"
MODULATION, TIME = "modulation", "time and guidance embedding"
REFINER, INPUT, OUTPUT = "refiner", "input projection", "output projection"
Roles = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Linear:
    """A linear that ran.

    Attributes:
        path: in the denoiser.
        block: path of the main block it is in; "" outside.
        role: what it does.
        read: identifies the tensor that it was given.
    """

    path: str
    block: str
    role: str
    read: tuple[object, ...]

    @property
    def inside(self) -> str:
        """Its path in its block, in the denoiser where it is in none."""
        return self.path[len(self.block) + 1 :] if self.block else self.path


def linears_of(
    denoiser: nn.Module, trace: Trace, found: Sequence[BlockList], main: Sequence[BlockList]
) -> list[Linear]:
    """Every linear that ran, in a call of one sample."""
    lists, refiners = {one.path for one in main}, {one.path for one in found} - {one.path for one in main}
    begin = main[0].calls[0].first if main else 0
    made = []
    for path, module in denoiser.named_modules():
        calls = trace.of(path)
        if not isinstance(module, nn.Linear) or not calls:
            continue
        x = next(t for t in calls[0].given.values() if isinstance(t, torch.Tensor))
        whole = x.numel() == x.shape[-1]  # no tokens: what it makes reaches all of them
        block = next((".".join(path.split(".")[: name.count(".") + 2]) for name in lists if _in(path, name)), "")
        if block:
            role = (_embeds(denoiser, path) if whole else "") or _role(denoiser, path, block, whole)
        elif any(_in(path, name) for name in refiners):
            role = REFINER
        elif not lists and not whole and any(map(_transforms, _around(denoiser, path, ""))):
            role = _role(denoiser, path, "", whole)
        else:
            role = OUTPUT if calls[0].first > begin and main else TIME if whole else INPUT
        made.append(Linear(path, block, role, (x.data_ptr(), x.shape, x.stride(), id(x))))
    return made


def _in(path: str, name: str) -> bool:
    return path.startswith(f"{name}.")


def _embeds(denoiser: nn.Module, path: str) -> str:
    return TIME if any("Embed" in type(module).__name__ for module in _around(denoiser, path, "")) else ""


def _role(denoiser: nn.Module, path: str, block: str, whole: bool) -> str:
    if whole:
        return MODULATION
    return ATTENTION if any(map(attends, _around(denoiser, path, block))) else MLP


def _around(denoiser: nn.Module, path: str, block: str) -> Iterator[nn.Module]:
    """The modules that a module is in, up to its block."""
    while (path := path.rpartition(".")[0]) != block:
        yield denoiser.get_submodule(path)


def attends(module: nn.Module) -> bool:
    """Whether a module is attention, by its class or that class's name."""
    name = type(module).__name__.lower()
    return isinstance(module, Attention | AttentionModuleMixin) or "attention" in name or "attn" in name


def _transforms(module: nn.Module) -> bool:
    """Whether a module is attention or a feed-forward."""
    return attends(module) or isinstance(module, FeedForward)


def roles_in_blocks(linears: Sequence[Linear]) -> Roles:
    """Wildcards, by role, of the linears worth quantizing; paths inside a block."""
    inside: dict[str, dict[str, None]] = {ATTENTION: {}, MLP: {}}
    others = {one.inside for one in linears if one.role not in inside}
    for one in linears:
        if one.role in inside:
            inside[one.role][one.inside] = None
    wanted = {role: set(paths) for role, paths in inside.items()}
    return {
        role: _widened(paths, others.union(*(wanted[r] for r in wanted if r != role))) for role, paths in inside.items()
    }


def sensitive_roles(linears: Sequence[Linear]) -> Roles:
    """Wildcards, by role, of the linears whose error does not average out; paths in the denoiser."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for one in linears:
        if one.role not in (ATTENTION, MLP):
            where = f"{one.block.rpartition('.')[0]}.*.{one.inside}" if one.block else one.path
            found[one.role][where] = None
    return {role: _widened(paths, ()) for role, paths in found.items()}


def _widened(paths: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Numbers of modules as wildcards, where that names none of the others: another model may have more of them."""
    made = dict[str, None]()
    for path in paths:
        wide = ".".join("*" if part.isdigit() else part for part in path.split("."))
        made[path if any(fnmatch.fnmatchcase(other, wide) for other in others) else wide] = None
    return tuple(made)


def same_inputs(linears: Sequence[Linear]) -> tuple[tuple[str, ...], ...]:
    """Linears of a block, by their paths inside it, that read the very same tensor in every block they are in."""
    blocks: dict[str, dict[tuple[object, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in linears:
        if one.role in (ATTENTION, MLP):
            blocks[one.block][one.read].append(one.inside)
    reads = {
        block: {path: read for read, paths in groups.items() for path in paths} for block, groups in blocks.items()
    }
    merged: list[dict[str, None]] = []
    for groups in blocks.values():
        for paths in groups.values():
            if len(paths) > 1:
                _merge(merged, paths, reads)
    return tuple(tuple(group) for group in merged if len(group) > 1)


def _merge(
    merged: list[dict[str, None]], paths: Sequence[str], reads: Mapping[str, Mapping[str, tuple[object, ...]]]
) -> None:
    """Add linears to the group that has some of them, or as a group; those that read another tensor elsewhere not."""
    together = [p for p in paths if all(len({own[q] for q in (p, paths[0]) if q in own}) < 2 for own in reads.values())]
    for group in merged:
        if group.keys() & set(together):
            group.update(dict.fromkeys(together))
            return
    merged.append(dict.fromkeys(together))
