"""4-bit linears rounded with error feedback on what they were seen to be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ...core.facts import Facts
from ..linears.weight_only import WeightOnlyLinear
from ..schemes import Scheme
from .feedback import round_with_feedback
from .grids import RoundingGrid


@dataclass(frozen=True)
class InputMoments:
    """What a linear with K input features was given in calibration.

    Attributes:
        second: (K, K) float32, E[x x^T].
        mean: (K,) float32.
    """

    second: torch.Tensor
    mean: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """(K, K)."""
        return self.second - torch.outer(self.mean, self.mean)


@torch.no_grad()
def rounded_with_feedback(linear: nn.Linear, scheme: Scheme, seen: InputMoments) -> WeightOnlyLinear:
    """A new module for a linear, in a scheme of 4 bits. The linear itself is not touched.

    A bias absorbs the output error of the mean input, and the weight is rounded to keep the rest small.
    """
    weight, grid = linear.weight.detach().float(), RoundingGrid(scheme, linear.weight.dtype)
    rounded = round_with_feedback(weight, grid, seen.second if linear.bias is None else seen.covariance)
    module = WeightOnlyLinear(linear, scheme, grid.stored(rounded))
    if linear.bias is not None:
        shift = (weight - grid.decoded(rounded)) @ seen.mean
        module.bias = nn.Parameter((linear.bias.float() + shift).to(linear.bias.dtype), requires_grad=False)
    return module


@dataclass(frozen=True)
class FeedbackRounding:
    """The linears of a model, rounded with error feedback.

    Attributes:
        linears: by path in the denoiser.
        adapters, device: in whose weights, and where, they were made.
        source: the calls that it was calibrated on, in words.
    """

    linears: Mapping[str, WeightOnlyLinear]
    adapters: tuple[str, ...]
    device: str
    source: str

    def stale(self, facts: Facts) -> str:
        """Why it does not belong to a model with these facts; '' where it does."""
        if facts.adapters != self.adapters:
            names = [
                " and ".join(adapters) if adapters else "no adapter" for adapters in (self.adapters, facts.adapters)
            ]
            return f"it was rounded for weights with {names[0]}, these have {names[1]}"
        if facts.machine.device != self.device:
            return f"it was rounded on {self.device}, the model is on {facts.machine.device}"
        return ""
