"""A linear converted with the help of what it was seen to be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..backends.base import storage_bytes
from ..linears.corrected import Balanced, Branched
from ..linears.weight_only import WeightOnlyLinear
from .candidates import RoundingCandidate
from .feedback import round_with_feedback
from .grids import RoundingGrid, fitted
from .lowrank import LowRankBranch, with_branch
from .smoothing import balance

Convert = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True)
class Seen:
    """What a linear with K input features was given in calibration.

    Attributes:
        moment: (K, K) float32, E[x x^T].
        mean: (K,) float32.
        peak: (K,) float32, largest magnitude.
    """

    moment: torch.Tensor
    mean: torch.Tensor
    peak: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """(K, K)."""
        return self.moment - torch.outer(self.mean, self.mean)

    def divided(self, by: torch.Tensor) -> Seen:
        """The same with every channel divided."""
        return Seen(self.moment / torch.outer(by, by), self.mean / by, self.peak / by)


@torch.no_grad()
def calibrated(linear: nn.Linear, candidate: RoundingCandidate, seen: Seen, convert: Convert) -> nn.Module:
    """A new module for a linear; the linear itself is not touched.

    Args:
        convert: makes of a linear what the candidate's scheme says, without calibration.
    """
    weight, divisor = linear.weight.detach().float(), None
    if candidate.balance:
        divisor = balance(seen.peak, weight)
        weight, seen = weight * divisor, seen.divided(divisor)
    branch = _branch(weight, candidate, seen, linear.weight.dtype) if candidate.rank else None
    module = _converted(linear, weight - branch.product if branch else weight, candidate, seen, convert)
    if branch:
        dtype = torch.bfloat16 if linear.weight.dtype == torch.float32 else linear.weight.dtype
        module = Branched(module, branch.left.to(dtype), branch.right.to(dtype))
    return module if divisor is None else Balanced(module, divisor)


def _branch(weight: torch.Tensor, candidate: RoundingCandidate, seen: Seen, dtype: torch.dtype) -> LowRankBranch:
    def rounded(left: torch.Tensor) -> torch.Tensor:
        if candidate.scheme.weight_bits == 4:
            grid = RoundingGrid(candidate.scheme, dtype)
            return grid.decoded(fitted(left, grid, seen.moment.diagonal()))
        step = left.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        return (left / step).round() * step

    return with_branch(weight, candidate.rank, seen.moment.diagonal(), rounded)


def _converted(
    linear: nn.Linear, weight: torch.Tensor, candidate: RoundingCandidate, seen: Seen, convert: Convert
) -> nn.Module:
    if candidate.scheme.weight_bits == 4:
        return _on_a_grid(linear, weight, candidate, seen)
    changed = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    changed.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
    changed.bias = linear.bias
    return convert(changed)


def _on_a_grid(linear: nn.Linear, weight: torch.Tensor, candidate: RoundingCandidate, seen: Seen) -> WeightOnlyLinear:
    grid = RoundingGrid(candidate.scheme, linear.weight.dtype)
    if not candidate.feedback:
        return WeightOnlyLinear(linear, candidate.scheme, grid.stored(fitted(weight, grid, seen.moment.diagonal())))
    rounded = round_with_feedback(weight, grid, seen.moment if linear.bias is None else seen.covariance)
    module = WeightOnlyLinear(linear, candidate.scheme, grid.stored(rounded))
    if linear.bias is not None:
        shift = (weight - grid.decoded(rounded)) @ seen.mean
        module.bias = nn.Parameter((linear.bias.float() + shift).to(linear.bias.dtype), requires_grad=False)
    return module


def calibrated_bytes(module: nn.Module, held: Callable[[nn.Module], int]) -> int:
    """Bytes of the storages behind a calibrated module; the bias is not counted.

    Args:
        held: bytes of a module that a backend made.
    """
    if isinstance(module, Balanced):
        return storage_bytes([module.factor]) + calibrated_bytes(module.inner, held)
    if isinstance(module, Branched):
        return storage_bytes([module.left, module.right]) + calibrated_bytes(module.inner, held)
    if isinstance(module, WeightOnlyLinear):
        return storage_bytes(module.stored.tensors())
    return held(module)
