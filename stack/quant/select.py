"""Which linears become int8, and why each of the others does not. Pure: looks at names and sizes, changes nothing.

Three reasons to keep a linear, which must not be confused:
- legality: the kernel cannot take its shape;
- amplification: an error there does not average out. A modulation's output multiplies every token of a block, a
  time embedding enters all blocks, the output projection writes the velocity itself;
- no gain: too small, or too few rows, to be faster.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn

from ..models.wiring import Wiring

# Linears of the text stream, which sees as many rows as the prompt has tokens; paths inside a block.
TEXT_STREAM = ("attn.add_[qkv]_proj", "attn.to_add_out", "ff_context.net.*")
# Below this many rows times features, rounding the rows costs what the int8 product gains (AVX2, fp32 = 1: 128 rows of
# 512 features 1.16, 256 of 192 0.6 to 1.0, 16 of 512 0.6).
SMALLEST_GAINING_INPUT = 65_536

AMPLIFIES = "error amplification: its output reaches every token"


@dataclass(frozen=True)
class Choice:
    """One linear of the denoiser.

    Attributes:
        path: in the denoiser.
        role: "attention" or "mlp"; None outside the large linears.
        shape: (out, in) features.
        kept: why it stays in floating point; empty if it is converted.
        group: linears of the same non-empty group read the same input.
    """

    path: str
    role: str | None
    shape: tuple[int, int]
    kept: str = ""
    group: str = ""


def row_gain(rows: int, features: int) -> str:
    """Why a linear that sees this many rows is not worth converting, or ''. 0 rows means unknown."""
    if rows * features >= SMALLEST_GAINING_INPUT:
        return ""
    return f"no gain: {rows} rows" if rows else "no gain: number of rows unknown"


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _illegal(linear: nn.Linear, multiple: int) -> str:
    """Why no kernel can take this linear, or ''."""
    weight = linear.weight
    if type(linear) is not nn.Linear or type(weight) is not nn.Parameter or not weight.is_floating_point():
        return f"kernel legality: not a plain linear but {type(linear).__name__} of {type(weight).__name__}"
    if linear.in_features % multiple or linear.out_features % multiple:
        return f"kernel legality: {linear.in_features} x {linear.out_features} is no multiple of {multiple}"
    return ""


def _gainless(linear: nn.Linear, inside: str, min_features: int, text_tokens: int) -> str:
    """Why int8 would not make this linear faster, or ''."""
    narrowest = min(linear.in_features, linear.out_features)
    if narrowest < min_features:
        return f"no gain: {linear.in_features} x {linear.out_features} is under {min_features} features"
    return row_gain(text_tokens, narrowest) if _matches(inside, TEXT_STREAM) else ""


def choose_linears(
    denoiser: nn.Module, wiring: Wiring, min_features: int, text_tokens: int = 0, multiple: int = 1
) -> list[Choice]:
    """Every linear of a denoiser, in module order, with the verdict.

    Args:
        min_features: linears with fewer inputs or outputs stay.
        text_tokens: rows of the text stream; 0 if unknown.
        multiple: what the kernel needs in and out features to be a multiple of.
    """
    blocks = [path for path, _ in wiring.blocks(denoiser)]
    choices = []
    for path, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        block = next((b for b in blocks if path.startswith(b + ".")), None)
        inside = path[len(block) + 1 :] if block else ""
        role = wiring.role(inside) if block else None
        kept = _illegal(module, multiple) or _gainless(module, inside, min_features, text_tokens)
        if role is None:
            kept = AMPLIFIES
        group = next((f"{block}/{i}" for i, patterns in enumerate(wiring.same_input) if _matches(inside, patterns)), "")
        choices.append(Choice(path, role, (module.out_features, module.in_features), kept, "" if kept else group))
    return choices


def grouped(choices: list[Choice]) -> list[list[Choice]]:
    """The linears to convert, those that read the same input together."""
    groups: dict[str, list[Choice]] = defaultdict(list)
    for choice in choices:
        if not choice.kept:
            groups[choice.group or choice.path].append(choice)
    return list(groups.values())


def weight_bytes(denoiser: nn.Module, choices: list[Choice]) -> int:
    """Bytes of the weights to be converted, as they are now."""
    weights: list[torch.Tensor] = [denoiser.get_parameter(f"{c.path}.weight") for c in choices if not c.kept]
    return sum(weight.nbytes for weight in weights)
