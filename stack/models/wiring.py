"""How a diffusers family is wired: where its blocks are, what flows through them, what its linears do."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError


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


@dataclass(frozen=True)
class Along:
    """How an argument of a block runs along the tokens.

    Attributes:
        streams: whose tokens it holds, one stream after the other.
        axis: of the argument, or of every tensor of it where it is a tuple.
    """

    streams: tuple[str, ...]
    axis: int = 0


@dataclass(frozen=True)
class Wiring:
    """A family, as data.

    Attributes:
        family: name used in facts and recipes.
        classes: names of the diffusers classes it covers.
        block_lists: module lists in the order they run.
        streams: what each block takes and returns: stream name to argument name, in the order of the return value.
        output_stream: the stream the head reads.
        linears: shell wildcards, role by role, of the linears worth quantizing; paths inside a block.
        sensitive: shell wildcards, role by role, of the linears whose error does not average out; paths in
            the denoiser.
        modules: what a per-module cache keeps, by block list: the modules whose output it predicts.
        modulation: (block, its arguments) to the first block's modulated input (B, N, D).
        head: (denoiser, output stream behind the blocks, a block's arguments) to the denoiser's output, token by token.
        tokens: (pipeline or None, configuration of the denoiser) to the grid of the output stream's tokens and the
            number of the text's, at the pipeline's default size; () and 0 where unknown.
        grid: (denoiser, its arguments) to the grid of the output stream's tokens in this very call: (rows, columns), or
            (frames, rows, columns) of a video; () where they lie on none. The last axis runs fastest.
        inputs: arguments of the denoiser with a leading batch dimension; () where a batch can only run as a whole.
        residuals: arguments of the denoiser that a control net makes anew on every step; all others but the latent and
            its time count as the same on every step of a request.
        batched: other arguments of a block with a leading batch dimension.
        constants: modules of the denoiser whose output is the same on every step of a request.
        embedders: stream name to the module of the denoiser that makes it; only blocks read what these make.
        along: arguments with an entry per token, such as masks and rotary tables.
        same_input: shell wildcards, list by list, of the linears of a block that read the very same tensor.
        only: what the configuration has to say of these entries for the wiring to be true.
        flow: whether its output is a velocity, noise - x0, whatever the sampler: what a bare denoiser is taken for.
        halves: whether a pipeline runs both guidance branches in one call, each in one half of the batch.
        timestep_scale: the denoiser's `timestep` argument divided by this is sigma.
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
    head: Callable[[Any, torch.Tensor, Mapping[str, Any]], torch.Tensor]
    tokens: Callable[[Any, Mapping[str, Any]], tuple[tuple[int, ...], int]]
    grid: Callable[[Any, Mapping[str, Any]], tuple[int, ...]]
    inputs: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    batched: tuple[str, ...] = ("temb",)
    constants: tuple[str, ...] = ()
    embedders: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, Along] = field(default_factory=dict)
    same_input: tuple[tuple[str, ...], ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    flow: bool = True
    halves: bool = False
    timestep_scale: float = 1.0

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

    def modulated(self, block: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
        """The modulated input of a block, which TeaCache looks at."""
        return self.modulation(block, given)

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


def _flux_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """One image token per 2 x 2 latent pixels."""
    if pipe is None:
        return (), 0
    side = pipe.default_sample_size // 2
    return (side, side), _asked(pipe, "max_sequence_length")


def _flux_grid(denoiser: Any, given: Mapping[str, Any]) -> tuple[int, ...]:
    """The places that the tokens' own positions name, whatever their unit; one sync with the device per axis."""
    ids = given["img_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids).float()  # diffusers still takes them with a batch dimension
    axes = [axis.unique(return_inverse=True) for axis in ids.unbind(-1)]
    counts = [len(values) for values, _ in axes]
    place = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    for count, (_, index) in zip(counts, axes, strict=True):
        place = place * count + index
    # A picture beside its condition, or tokens in another order, fill no grid one after the other.
    if math.prod(counts) != len(ids) or not torch.equal(place, torch.arange(len(ids), device=ids.device)):
        return ()
    return tuple(counts[1:] if counts[0] == 1 else counts)


def _asked(pipe: Any, name: str) -> int:
    """What an argument of a pipeline's call is by default; 0 where it has none of this name."""
    # A subclass may hand it on unnamed: its parent names it.
    calls = (vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind))
    found = (parameter for call in calls if (parameter := inspect.signature(call).parameters.get(name)))
    return next((p.default for p in found if isinstance(p.default, int)), 0)


FLUX = Wiring(
    family="flux",
    classes=("FluxTransformer2DModel",),
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    streams={"text": "encoder_hidden_states", "image": "hidden_states"},
    output_stream="image",
    linears={
        "attention": ("attn.to_[qkv]", "attn.to_out.0", "attn.add_[qkv]_proj", "attn.to_add_out"),
        "mlp": ("ff.net.*", "ff_context.net.*", "proj_mlp", "proj_out"),
    },
    sensitive={
        "time and guidance embedding": ("time_text_embed.*",),
        "modulation": ("*transformer_blocks.*.norm*.linear",),
        "input projection": ("x_embedder", "context_embedder"),
        "output projection": ("norm_out.linear", "proj_out"),
    },
    modules={
        "transformer_blocks": (
            CachedModule("attn", "attention", norms=("norm1", "norm1_context")),
            CachedModule("ff", "mlp", norms=("norm2",), values="attn.to_v"),
            CachedModule("ff_context", "mlp", norms=("norm2_context",), values="attn.add_v_proj"),
        ),
        "single_transformer_blocks": (
            CachedModule("proj_out", "both", spares=("attn", "proj_mlp"), norms=("norm",), values="attn.to_v"),
            CachedModule("attn", "attention"),
        ),
    },
    modulation=lambda block, given: block.norm1(given["hidden_states"], emb=given["temb"])[0],
    head=lambda denoiser, tokens, given: denoiser.proj_out(denoiser.norm_out(tokens, given["temb"])),
    tokens=_flux_tokens,
    grid=_flux_grid,
    inputs=("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"),
    residuals=("controlnet_block_samples", "controlnet_single_block_samples"),
    constants=("pos_embed",),
    embedders={"text": "context_embedder", "image": "x_embedder"},
    along={"image_rotary_emb": Along(("text", "image"))},
    same_input=(("attn.to_[qkv]", "proj_mlp"), ("attn.add_[qkv]_proj",)),
)


def _dit_head(denoiser: Any, tokens: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    first = denoiser.transformer_blocks[0]
    when = first.norm1.emb(given["timestep"], given["class_labels"], hidden_dtype=tokens.dtype)
    shift, scale = denoiser.proj_out_1(nn.functional.silu(when)).chunk(2, dim=1)
    return denoiser.proj_out_2(denoiser.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])


def _dit_modulation(block: Any, given: Mapping[str, Any]) -> torch.Tensor:
    tokens = given["hidden_states"]
    return block.norm1(tokens, given["timestep"], given["class_labels"], hidden_dtype=tokens.dtype)[0]


def _dit_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    side = config["sample_size"] // config["patch_size"]
    return (side, side), 0


def _patches(denoiser: Any, given: Mapping[str, Any]) -> tuple[int, ...]:
    """One token per patch of a latent (B, C, H, W) or (B, C, F, H, W)."""
    latent, patch = given["hidden_states"], denoiser.config["patch_size"]
    rows, columns = (side // patch for side in latent.shape[-2:])
    frames = [count // denoiser.config["patch_size_t"] for count in latent.shape[2:-2]]
    return (*frames, rows, columns)


DIT = Wiring(
    family="dit",
    classes=("DiTTransformer2DModel",),
    block_lists=("transformer_blocks",),
    streams={"image": "hidden_states"},
    output_stream="image",
    linears={"attention": ("attn1.to_[qkv]", "attn1.to_out.0"), "mlp": ("ff.net.*",)},
    sensitive={
        "time and guidance embedding": ("transformer_blocks.*.norm1.emb.*",),
        "modulation": ("transformer_blocks.*.norm1.linear",),
        "output projection": ("proj_out_1", "proj_out_2"),
    },
    modules={
        "transformer_blocks": (
            CachedModule("attn1", "attention", norms=("norm1",)),
            CachedModule("ff", "mlp", norms=("norm3",), values="attn1.to_v"),
        )
    },
    flow=False,
    halves=True,
    modulation=_dit_modulation,
    head=_dit_head,
    tokens=_dit_tokens,
    grid=_patches,
    inputs=("hidden_states", "timestep", "class_labels"),
    embedders={"image": "pos_embed"},
    batched=("timestep", "class_labels"),
    timestep_scale=1000.0,
)


def _video_tokens(pipe: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """One token per patch of latents in space and time; a pipeline over pixels has its size in its configuration."""
    if pipe is None:
        return (), 0
    arguments = {"frames": "num_frames", "size": "height"}
    frames, height = (pipe.config.get(own) or _asked(pipe, name) for own, name in arguments.items())
    width = pipe.config.get("size") or _asked(pipe, "width")
    latents = (frames - 1) // pipe.vae_scale_factor_temporal + 1
    patch = pipe.vae_scale_factor_spatial * config["patch_size"]
    grid = (latents // config["patch_size_t"], height // patch, width // patch)
    return grid, _asked(pipe, "max_sequence_length")


# FLUX's blocks, but that the text comes last, has no positions, and may be masked.
HUNYUAN_VIDEO = replace(
    FLUX,
    family="hunyuan-video",
    classes=("HunyuanVideoTransformer3DModel",),
    streams={"video": "hidden_states", "text": "encoder_hidden_states"},
    output_stream="video",
    sensitive={
        "time and guidance embedding": ("time_text_embed.*", "context_embedder.time_text_embed.*"),
        "refiner": ("context_embedder.token_refiner.*",),
        "modulation": FLUX.sensitive["modulation"],
        "input projection": ("x_embedder.*", "context_embedder.proj_in"),
        "output projection": ("norm_out.linear", "proj_out"),
    },
    tokens=_video_tokens,
    grid=_patches,
    inputs=(*FLUX.inputs, "encoder_attention_mask"),
    residuals=(),
    batched=("temb", "attention_mask"),
    constants=("rope",),
    embedders={"text": "context_embedder", "video": "x_embedder"},
    along={
        "freqs_cis": Along(("video",)),
        "image_rotary_emb": Along(("video",)),
        "attention_mask": Along(("video", "text"), axis=-1),
    },
    # Its single blocks put the tokens together anew for the attention, behind the back of `proj_mlp`.
    same_input=(("attn.to_[qkv]",), ("attn.add_[qkv]_proj",)),
    # With an image as condition, some or all tokens of the first frame have a modulation of their own.
    only={"image_condition_type": None},
    timestep_scale=1000.0,
)

FAMILIES: dict[str, Wiring] = {wiring.family: wiring for wiring in (FLUX, DIT, HUNYUAN_VIDEO)}


def wiring_of(denoiser: Any) -> Wiring:
    """The wiring of a model.

    Raises:
        StackError: no known family covers its class, or not as it is configured.
    """
    name = type(denoiser).__name__
    for wiring in FAMILIES.values():
        if name in wiring.classes:
            _refuse_other(denoiser, wiring)
            return wiring
    known = [cls for wiring in FAMILIES.values() for cls in wiring.classes]
    raise StackError(f"cannot accelerate a {name}: expected one of {', '.join(known)}, or a pipeline with one")


def _refuse_other(denoiser: Any, wiring: Wiring) -> None:
    for entry, wanted in wiring.only.items():
        if (found := denoiser.config.get(entry)) != wanted:
            name = type(denoiser).__name__
            raise StackError(f"cannot accelerate a {name} with {entry}={found!r}: expected {wanted!r}")
