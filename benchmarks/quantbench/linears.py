"""The linears of one transformer block, bare: q, k, v on one input, the output projection, and an MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import interleaved
from torch import nn

from quantbench.libraries import CONTESTANTS

Run = Callable[[], object]


@dataclass(frozen=True)
class Inputs:
    """What the four kinds of linear read: (tokens, width) three times, (tokens, 4 width) once."""

    normed: torch.Tensor
    attended: torch.Tensor
    second: torch.Tensor
    hidden: torch.Tensor


class BlockLinears(nn.Module):
    """Six linears without what stands between them. Groups of linears that read the same tensor come first to last."""

    def __init__(self, width: int, dtype: torch.dtype, device: str = "cpu"):
        super().__init__()
        torch.manual_seed(0)
        sizes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        self.linears = nn.ModuleList(nn.Linear(*size, device=device, dtype=dtype) for size in sizes)

    def forward(self, given: Inputs) -> list[torch.Tensor]:
        read = [given.normed] * 3 + [given.attended, given.second, given.hidden]
        return [linear(x) for linear, x in zip(self.linears, read, strict=True)]


def inputs(tokens: int, width: int, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Gaussian rows of different sizes, as activations are."""
    generator = torch.Generator(device).manual_seed(1)

    def rows(features: int) -> torch.Tensor:
        x = torch.randn(tokens, features, generator=generator, device=device)
        return (x * torch.rand(tokens, 1, generator=generator, device=device).add(0.1)).to(dtype)

    return Inputs(rows(width), rows(width), rows(width), rows(4 * width))


def error_of(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Relative error over all outputs."""
    pairs = list(zip(got, wanted, strict=True))
    missed = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (missed / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


@torch.no_grad()
def measure_linears(
    width: int, tokens: int, rounds: int, names: tuple[str, ...], device: str = "cpu"
) -> list[dict[str, Any]]:
    """One row per contestant: time, speed over bf16 eager and compiled, error, bytes of the weights."""
    dtype = torch.bfloat16
    given, base = inputs(tokens, width, dtype, device), BlockLinears(width, dtype, device)
    wanted = base.float()(Inputs(*(x.float() for x in vars(given).values())))
    base = base.to(dtype)
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        contestant = CONTESTANTS[name]
        linears = contestant.convert(list(base.linears), given)
        holder = BlockLinears(width, dtype, "meta")
        holder.linears = nn.ModuleList(linears)
        run = torch.compile(holder) if contestant.compiled else holder
        facts[name] = {"error": error_of(run(given), wanted), "bytes": contestant.held_bytes(linears)}
        runs[name] = lambda run=run: run(given)
    seconds = interleaved(runs, rounds)
    weights = sum(linear.weight.nbytes for linear in base.linears)
    return [
        {
            "width": width,
            "tokens": tokens,
            "linears": name,
            "ms": 1e3 * seconds[name],
            "over bf16": seconds["bf16"] / seconds[name],
            "over compiled": seconds["bf16 compiled"] / seconds[name],
            "error": facts[name]["error"],
            "bytes over bf16": facts[name]["bytes"] / weights,
        }
        for name in names
    ]
