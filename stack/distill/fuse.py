"""A LoRA added to the weights in fp32, once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..bounds import merged_share, rounding_share
from ..compat.rules.adapters import LEAST_SHARE, MERGE_INTO_ROUNDED
from ..core.errors import StackError
from ..core.installer import Installer
from .lora import LowRank

BESIDE = f"keep it beside the weights (switchable=True) ({MERGE_INTO_ROUNDED.tag})"


@dataclass(frozen=True)
class Fused:
    """What fusing did.

    Attributes:
        linears: how many changed.
        share: of the updates that is left after rounding to the weights' type, weighted by their energy.
        dtype: of the weights, as a word.
    """

    linears: int
    share: float
    dtype: str


def fuse(root: nn.Module, updates: Mapping[str, LowRank], scale: float, install: Installer) -> Fused:
    """Add updates to the weights of a model, in fp32, and round once to the weights' own type.

    Raises:
        StackError: an update goes beyond the weights' type, a weight is packed by a quantization library, or has fewer
            than 16 bits and the update would be rounded away. Nothing is changed then.
    """
    done: list[tuple[nn.Module, str, torch.Tensor]] = []
    asked, left, dtype = 0.0, 0.0, torch.float32
    for path, update in updates.items():
        linear = root.get_submodule(path)
        weight: Any = linear._parameters.get("weight")
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise _packed(path, linear, weight, update.delta() * scale)
        dtype, delta = weight.dtype, update.delta(weight.device) * scale
        new = (weight.data.float() + delta).to(dtype)
        if not bool(new.float().isfinite().all()):
            raise StackError(f"the update of {path} at scale {scale:g} is beyond {dtype}: expected a smaller scale")
        energy = float(delta.square().sum())
        asked += energy
        left += energy * float(rounding_share(weight.data, new, delta))
        done.append((linear, "weight", new))
        if update.bias is not None:
            bias: Any = linear._parameters["bias"]
            extra = update.bias.float().to(bias.device) * (scale * update.scaling)
            done.append((linear, "bias", (bias.data.float() + extra).to(bias.dtype)))
    share, word = left / asked if asked else 1.0, str(dtype).removeprefix("torch.")
    if torch.finfo(dtype).bits < 16 and share < LEAST_SHARE:
        raise StackError(f"only {share:.1%} of the update would survive rounding to {word}; {BESIDE}")
    for linear, name, value in done:
        install.set_data(linear, name, value)
    return Fused(len(updates), share, word)


def _packed(path: str, linear: nn.Module, weight: Any, delta: torch.Tensor) -> StackError:
    """Why an update is not merged into packed weights, with the share that rounding would leave where it is known."""
    known = ""
    if type(weight).__module__.startswith("torchao"):
        step = float(weight.dequantize().float().abs().amax(1).square().mean().sqrt()) / 127
        ratio = float(delta.square().mean().sqrt()) / step
        known = (
            f": it is {ratio * math.sqrt(12):.2g} of the rounding noise of int8 rows, "
            f"so that {merged_share(ratio):.1%} would survive"
        )
    what = f"an update is not merged into the packed weights of {path}, a {type(linear).__name__}"
    return StackError(f"{what}{known}; {BESIDE}")
