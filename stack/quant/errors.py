"""What rounding to a scheme may cost, from the scheme and the width alone: a bound and an estimate, for `explain()`."""

from __future__ import annotations

import math

import torch

from ..bounds import level_rounding_bound
from ..core.facts import Facts
from .formats import E4M3_LARGEST, NF4_LEVELS
from .kernels.product import kernel_for
from .kernels.rows import ROW_LEVELS
from .schemes import Scheme

DRAWS = 4096  # quantiles of a Gaussian that an estimate is a mean over


def weight_levels(scheme: Scheme, facts: Facts) -> torch.Tensor:
    """What a weight can become, over the largest magnitude of those that share its scale: (L,) ascending in [-1, 1].

    4-bit integers span a group's range, at most twice its largest magnitude.
    """
    if scheme.kind == "nf4":
        return torch.tensor(NF4_LEVELS)
    if scheme.kind == "float":
        return _e4m3()
    if scheme.weight_bits == 4:
        return torch.linspace(-1, 1, 16)
    return _even(kernel_for(facts.machine).weight_levels if scheme.rounds_activations else 127)


def row_levels(scheme: Scheme) -> torch.Tensor:
    """What an activation can become, over the largest of its token: (L,) ascending in [-1, 1]."""
    return _e4m3() if scheme.kind == "float" else _even(ROW_LEVELS)


def typical_error(levels: torch.Tensor, count: int) -> float:
    """Root mean square error of Gaussian numbers rounded to these levels, over their own root mean square.

    The levels are scaled to the largest magnitude of `count` of them, here its median: (2 Phi(m) - 1)^count = 1 / 2.
    """
    largest = float(torch.special.ndtri(torch.tensor((1 + 0.5 ** (1 / count)) / 2, dtype=torch.float64)))
    places = (torch.arange(DRAWS) + 0.5) / DRAWS
    values = torch.special.ndtri(places).clamp(-largest, largest) / largest
    nearest = levels[torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)]
    return largest * float((nearest - values).square().mean().sqrt())


def rounding_words(scheme: Scheme, facts: Facts) -> str:
    """One line: the largest error of a rounded number, and the error of an output that is to be expected.

    Errors of inputs and weights are independent, so their squares add up in an output.
    """
    # Either end of a range is the largest of about half the group.
    sharing = scheme.group // 2 if scheme.kind == "int" else scheme.group
    levels = [(weight_levels(scheme, facts), sharing or facts.width)]
    if scheme.rounds_activations:
        levels.append((row_levels(scheme), facts.width))
    bound = max(level_rounding_bound(grid) for grid, _ in levels)
    typical = math.hypot(*(typical_error(grid, count) for grid, count in levels))
    what = "weight or input" if scheme.rounds_activations else "weight"
    return (
        f"{scheme.name} error: a {what} is off by at most {bound:.2%} of the largest that shares its scale (bound), "
        f"an output by about {typical:.1%} (estimate)"
    )


def _even(levels: int) -> torch.Tensor:
    return torch.arange(-levels, levels + 1) / levels


def _e4m3() -> torch.Tensor:
    """The finite numbers of float8_e4m3fn over the largest."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return numbers[numbers.isfinite()].unique() / E4M3_LARGEST
