"""How a diffusers family is wired: where its blocks are, what flows through them, what its linears do."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import StackError


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
        timestep_scale: the denoiser's `timestep` argument divided by this is sigma.
    """

    family: str
    classes: tuple[str, ...]
    block_lists: tuple[str, ...]
    streams: dict[str, str]
    output_stream: str
    linears: dict[str, tuple[str, ...]]
    timestep_scale: float = 1.0

    def blocks(self, denoiser: nn.Module) -> list[tuple[str, nn.Module]]:
        """(path, block) in running order."""
        return [
            (f"{name}.{index}", block)
            for name in self.block_lists
            for index, block in enumerate(denoiser.get_submodule(name).children())
        ]

    def role(self, path_in_block: str) -> str | None:
        """The role of a linear ("attention", "mlp"), or None where it should stay as it is."""
        for role, patterns in self.linears.items():
            if any(fnmatch.fnmatchcase(path_in_block, pattern) for pattern in patterns):
                return role
        return None


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
)

FAMILIES: dict[str, Wiring] = {wiring.family: wiring for wiring in (FLUX,)}


def wiring_of(denoiser: Any) -> Wiring:
    """The wiring of a model.

    Raises:
        StackError: no known family covers its class.
    """
    name = type(denoiser).__name__
    for wiring in FAMILIES.values():
        if name in wiring.classes:
            return wiring
    known = [cls for wiring in FAMILIES.values() for cls in wiring.classes]
    raise StackError(f"cannot accelerate a {name}: expected a diffusers pipeline or one of {', '.join(known)}")
