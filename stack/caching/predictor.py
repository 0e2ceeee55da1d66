"""The state behind a forecast: a feature's differences over its full steps, split once, summed on cached steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..compat.noise import NoiseLedger, shrunk
from ..core.errors import StackError
from ..core.ranks import ALONE, Ranks
from .forecast import NOTHING, Differences, Forecast, differences, over_wide_gaps
from .placement import ON_DEVICE, Placement
from .splits import Split

HERMITE_SCALE = 0.5  # HiCache's contraction (arXiv 2508.16984)


class Predictor:
    """Forecasts one feature of one guidance branch on cached steps, from its full steps.

    Splitting, gains and divisions are done once, on the full step. A cached step is `order` multiply-adds. The
    coordinate of every difference is real (see `Forecast.coordinate`), never a count of calls.

    Args:
        split: what counts as principal; None where the forecast treats both parts alike.
        dtype: what differences are kept in; None is the feature's. Sums are made in the wider of the two, and a
            forecast has the feature's.
        placement: where they lie between uses; the split stays on the device.
        ranks: the processes that share the feature's tokens.

    Attributes:
        norms: (k,) float32 on the device, of all that forecasts are made of; infinite where it overflows.
    """

    def __init__(
        self,
        forecast: Forecast,
        split: Split | None = None,
        dtype: torch.dtype | None = None,
        placement: Placement = ON_DEVICE,
        ranks: Ranks = ALONE,
    ):
        self.forecast = forecast
        self.split = split if forecast.splits else None
        # As the placement keeps them:
        self._raw = NOTHING  # differences of order 0, 1, ... at the newest full step
        self._terms: list[torch.Tensor] = []  # the same with split and gains applied
        self._level: torch.Tensor | None = None
        self.dtype, self.placement = dtype, placement
        self._given = torch.float32  # the feature's dtype
        self._summed_in = torch.float32
        self._ledger = NoiseLedger(ranks)
        self.norms = torch.zeros(0)

    @property
    def bytes(self) -> int:
        """Memory of the device that is held, in bytes; tensors held twice count once."""
        return (0 if self.placement.on_host else self._kept_bytes) + (self.split.bytes if self.split else 0)

    @property
    def host_bytes(self) -> int:
        """Memory of the host that is held because the device's is short, in bytes."""
        return self._kept_bytes if self.placement.on_host else 0

    @property
    def _kept_bytes(self) -> int:
        held = {id(t): t for t in [*self._raw.values, *self._terms, self._level] if t is not None}
        return sum(t.nbytes for t in held.values())

    @property
    def ready(self) -> bool:
        """Whether a full step has been seen."""
        return bool(self._raw.values)

    @property
    def last(self) -> torch.Tensor:
        """The feature of the newest full step, rounded as it is kept."""
        return self.placement.get(self._raw.values[0])

    @property
    def kept_in(self) -> torch.dtype:
        """What features are kept in."""
        return self.dtype or self._given

    @property
    def nodes(self) -> tuple[float, ...]:
        """Coordinates of the full steps behind its terms, newest first."""
        return tuple(self._raw.nodes[: len(self._terms)])

    def update(
        self, feature: torch.Tensor, x: float, gain: float = 1.0, noise: float = 0.0, anew: bool = False
    ) -> None:
        """Take in the feature (B, N, D) of a full step at coordinate x.

        Args:
            gain: on all differences until the next full step, beside the forecast's own.
            noise: random error of the feature over its root mean square. Differences are then shrunk to what stands
                out of it and taken over gaps wide enough for it; with 0 they are the plain ones, bit for bit.
            anew: the feature jumps, which is no change in time: nothing is taken from those before it.
        """
        self._given = feature.dtype
        self._summed_in = torch.promote_types(self._given, self.kept_in)
        feature = feature.to(self._summed_in)
        if self.split:
            self.split.fit(feature, noise)
        old = NOTHING if anew else self._before(x)
        if noise:
            fresh = over_wide_gaps(self.forecast, feature, x, old, self._ledger.enter(feature, noise), self._ledger)
        else:
            fresh = differences(self.forecast, feature, x, old, {})
        terms = [self._value(feature)]
        for difference, mix in zip(fresh.values[1:], fresh.mixes[1:], strict=True):
            variance = self._ledger.variance(mix) if noise else None
            terms.append(self._shape(difference, gain, variance))
        kept_in, order = self.kept_in, self.forecast.effective_order
        wide = torch.promote_types(kept_in, torch.float32)
        norms = [torch.linalg.vector_norm(term.to(kept_in), dtype=wide) for term in terms]
        self.norms = torch.stack(norms).float()
        # The next full step starts from these differences: older ones only make higher or smoothed ones.
        fresh = fresh.kept(max(1, order + bool(self.forecast.smoothing) + (noise > 0)))
        kept = self._stored([*fresh.values, *terms])
        count = len(fresh.values)
        nodes = fresh.nodes[: order + 1 + (noise > 0)]
        self._raw, self._terms = Differences(kept[:count], nodes, fresh.mixes), kept[count:]
        self._ledger.keep(fresh.mixes)

    def _before(self, x: float) -> Differences:
        """What the differences at x go on from."""
        raw = self._raw
        if raw.nodes and x == raw.nodes[0]:  # the same moment again: nothing can be learnt about its change
            return NOTHING
        values = [self.placement.get(tensor) for tensor in raw.values] if self.forecast.effective_order else []
        return Differences(values, raw.nodes, raw.mixes)

    def _stored(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """As they are kept; what was one tensor stays one."""
        distinct, kept_in = {id(tensor): tensor for tensor in tensors}, self.kept_in
        kept = {key: self.placement.put(tensor.to(kept_in)) for key, tensor in distinct.items()}
        return [kept[id(tensor)] for tensor in tensors]

    def _value(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature, its principal part averaged over the full steps if the forecast asks for that."""
        if not self.forecast.level or self.split is None:
            return feature
        principal = self.split.principal(feature)
        older = principal if self._level is None else self.placement.get(self._level).to(principal.dtype)
        level = torch.lerp(principal, older, self.forecast.level)
        (self._level,) = self._stored([level])
        return feature + (level - principal)

    def _shape(self, difference: torch.Tensor, gain: float, variance: torch.Tensor | None) -> torch.Tensor:
        """A difference times its gains, and shrunk to what stands out of a noise of this variance (B,)."""
        principal, residual = (gain * part for part in self.forecast.gains)
        if variance is not None:
            if self.split is None:
                return principal * shrunk(difference, variance, ranks=self._ledger.ranks)
            loud, quiet = self.split.denoised(difference, variance)
            return principal * loud if residual == 0 else torch.add(principal * loud, quiet, alpha=residual)
        if self.split is None or principal == residual:
            return difference if principal == 1 else principal * difference
        excess = self.split.principal(difference)
        excess = excess if principal - residual == 1 else (principal - residual) * excess
        return excess if residual == 0 else torch.add(excess, difference, alpha=residual)

    def predict(self, x: float) -> torch.Tensor:
        """The feature (B, N, D) at another coordinate. Before a second full step it is plain reuse.

        Raises:
            StackError: no full step has run.
        """
        if not self._terms:
            raise StackError("nothing to predict from: no full step has run in this request")
        # One at a time is on the device: a map is lazy.
        terms = iter(map(self.placement.get, self._terms) if self.placement.on_host else self._terms)
        out = next(terms).to(self._summed_in)
        factors = weights(self.forecast, x, self._raw.nodes[: len(self._terms)])
        for term, factor in zip(terms, factors[1:], strict=True):
            out = torch.add(out, term, alpha=factor)
        return out.to(self._given)


def weights(forecast: Forecast, x: float, nodes: Sequence[float]) -> list[float]:
    """phi_0 = 1, phi_1, ... at x: what the differences are multiplied with (gains are already in them).

    Args:
        nodes: coordinates of the full steps behind the differences, newest first; one per difference.
    """
    if forecast.basis == "newton":
        products = [1.0]
        for node in nodes[:-1]:
            products.append(products[-1] * (x - node))
        return products
    u = x - nodes[0]
    if forecast.basis == "taylor":
        return [u**i / math.factorial(i) for i in range(len(nodes))]
    return [1.0, *(_hermite(i, u) / math.factorial(i) for i in range(1, len(nodes)))]


def _hermite(degree: int, x: float) -> float:
    """The contracted physicists' Hermite polynomial s^i H_i(s x)."""
    series = [0.0] * degree + [1.0]
    return HERMITE_SCALE**degree * float(np.polynomial.hermite.hermval(HERMITE_SCALE * x, series))
