"""Noise in the features that a cache differences: how much of it a difference holds, and how far to shrink that.

Quantized activations are rounded anew on every step, so a full step's feature is F + e with e of known relative size
(the noise floor) and unrelated between steps. A divided difference of order i over nodes x_0 ... x_i is
D_i = sum_j w_ij F(x_j), hence its noise has the variance sum_j w_ij^2 var(e_j): the narrower the gaps, the larger.
NVIDIA switched a cache off under W8A8 for that reason: 1.2 % noise against 2 % change from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core.ranks import ALONE, Ranks

Floor = tuple[tuple[float, float], ...]
"""(sigma, relative random error) pairs; empty where there is no noise."""
Mix = dict[int, float]
"""A linear combination of the features of full steps: coefficient by the number of the full step."""

FALSE_ALARM = 5.0  # standard deviations of a mean power: noise alone is taken for signal once in 3 million times
CANCELLED = 1e-9  # coefficients this much below the largest are what rounding left of zero


def combine(new: Mix, old: Mix, gap: float) -> Mix:
    """The mix of (new - old) / gap."""
    return {j: (new.get(j, 0.0) - old.get(j, 0.0)) / gap for j in new.keys() | old.keys()}


def blend(new: Mix, old: Mix, weight: float) -> Mix:
    """The mix of (1 - weight) new + weight old."""
    return {j: (1 - weight) * new.get(j, 0.0) + weight * old.get(j, 0.0) for j in new.keys() | old.keys()}


def without(low: Mix, high: Mix, factor: float) -> Mix:
    """The mix of low - factor high; steps that cancel are left out."""
    mixed = {j: low.get(j, 0.0) - factor * high.get(j, 0.0) for j in low.keys() | high.keys()}
    largest = max(map(abs, mixed.values()), default=0.0)
    return {j: weight for j, weight in mixed.items() if abs(weight) > CANCELLED * largest}


def wiener(power: torch.Tensor, noise: torch.Tensor, count: int) -> torch.Tensor:
    """The gain that a noisy quantity should be multiplied with: signal / (signal + noise), elementwise in [0, 1].

    `power` estimates signal + noise from `count` independent numbers, so that noise alone scatters by sqrt(2 / count)
    around its mean (chi-square). The noise is therefore taken `FALSE_ALARM` standard deviations larger: where there is
    nothing but noise the gain is exactly 0, and where there is none it is exactly 1.

    Args:
        power: mean square of the noisy quantity.
        noise: expected mean square of its noise; broadcasts with `power`.
        count: numbers behind each mean.
    """
    loud = noise * (1 + FALSE_ALARM * math.sqrt(2 / count))
    gain = 1 - loud / power.clamp_min(torch.finfo(power.dtype).tiny)
    return torch.where(loud > 0, gain.clamp(0, 1), torch.ones_like(gain))


def mean_power(values: torch.Tensor, ranks: Ranks = ALONE) -> torch.Tensor:
    """Mean square (B,) of each sample of (B, N, D), in float32, over the tokens of all these processes."""
    return ranks.mean(values.float().square().mean((1, 2)))


def drowned(difference: torch.Tensor, variance: torch.Tensor, ranks: Ranks = ALONE) -> bool:
    """Whether noise is more than half of a difference's power in every sample of the batch. Reads one number."""
    return bool((mean_power(difference, ranks) < 2 * variance).all())


def shrunk(values: torch.Tensor, variance: torch.Tensor, share: float = 1.0, ranks: Ranks = ALONE) -> torch.Tensor:
    """(B, N, D) times one gain per sample.

    Args:
        variance: (B,) noise per element before `values` were projected.
        share: of all directions that the projection leaves, in (0, 1]; noise is even in all of them.
        ranks: the processes that share the tokens.
    """
    count = max(1, round(share * values[0].numel() * ranks.size))
    gain = wiener(mean_power(values, ranks), share * variance, count)
    return values * gain[:, None, None].to(values.dtype)


def floor_at(floor: Floor, sigma: float) -> float:
    """The noise floor at a noise level, on straight lines between those measured."""
    if not floor:
        return 0.0
    sigmas, errors = zip(*sorted(floor), strict=True)
    return float(np.interp(sigma, sigmas, errors))


def rounding_floor(bits: int, width: int) -> float:
    """The random error that rounding activations row by row leaves, relative to their root mean square: an estimate.

    A symmetric scale spans the row's largest entry in 2^(bits - 1) - 1 steps; the error is even within a step, so its
    root mean square is a step over sqrt(12) (Widrow and Kollar 2008, ch. 3). The largest of D normal numbers is about
    sqrt(2 ln 2D) times their spread. 0.8 % for 8 bits at 192 channels, where 0.3 to 1.2 % is measured at the output.
    """
    return math.sqrt(2 * math.log(2 * max(width, 1))) / (2 ** (bits - 1) - 1) / math.sqrt(12)


class NoiseLedger:
    """How noisy the full steps were that are mixed into the differences in use.

    Args:
        ranks: the processes that share the tokens.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self._variances: dict[int, torch.Tensor] = {}
        self._count = 0

    def enter(self, feature: torch.Tensor, relative: float) -> Mix:
        """A full step's feature (B, N, D) whose random error is `relative` times its root mean square."""
        number, self._count = self._count, self._count + 1
        self._variances[number] = relative**2 * mean_power(feature, self.ranks)
        return {number: 1.0}

    def variance(self, mix: Mix) -> torch.Tensor:
        """Noise variance per element (B,) of a combination."""
        return torch.stack([weight**2 * self._variances[number] for number, weight in mix.items()]).sum(0)

    def keep(self, mixes: Sequence[Mix]) -> None:
        """Forget the steps that none of these holds."""
        needed = {number for mix in mixes for number in mix}
        self._variances = {number: v for number, v in self._variances.items() if number in needed}
