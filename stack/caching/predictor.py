"""The state behind a forecast: a feature's differences over its full steps, split once, summed on cached steps."""

from __future__ import annotations

import torch

from ..errors import StackError
from .forecast import Forecast, gaps, weights
from .splits import Split


class Predictor:
    """Carries one feature of one guidance branch from its full steps to the cached ones.

    Splitting, gains and divisions are done once, on the full step. A cached step is `order` multiply-adds. The
    coordinate of every difference is real (see `Forecast.coordinate`), never a count of calls.

    Args:
        split: what counts as principal; None where the forecast treats both parts alike.
        dtype: what differences are kept in; None is the feature's. Sums are made in the wider of the two, and a
            forecast has the feature's.
    """

    def __init__(self, forecast: Forecast, split: Split | None = None, dtype: torch.dtype | None = None):
        self.forecast = forecast
        self.split = split if forecast.splits else None
        self._raw: list[torch.Tensor] = []  # differences of order 0, 1, ... at the newest full step
        self._terms: list[torch.Tensor] = []  # the same with split and gains applied
        self._level: torch.Tensor | None = None
        self.dtype = dtype
        self._given = torch.float32  # the feature's dtype
        self._nodes: list[float] = []

    @property
    def bytes(self) -> int:
        """Memory held, in bytes; tensors held twice count once."""
        held = {id(t): t for t in [*self._raw, *self._terms, self._level] if t is not None}
        return sum(t.nbytes for t in held.values()) + (self.split.bytes if self.split else 0)

    @property
    def ready(self) -> bool:
        """Whether a full step has been seen."""
        return bool(self._raw)

    @property
    def last(self) -> torch.Tensor:
        """The feature of the newest full step, as it is kept."""
        return self._raw[0]

    @property
    def newest(self) -> float:
        """Its coordinate."""
        return self._nodes[0]

    def update(self, feature: torch.Tensor, x: float, gain: float = 1.0) -> None:
        """Take in the feature (B, N, D) of a full step at coordinate x.

        Args:
            gain: on all differences until the next full step, beside the forecast's own.
        """
        self._given = feature.dtype
        feature = feature.to(self._wide)
        if self.split:
            self.split.fit(feature)
        if self._nodes and x == self._nodes[0]:  # the same moment again: nothing can be learnt about its change
            self._raw, self._nodes = self._raw[:1], self._nodes[:1]
            past, old = [], []
        else:
            past, old = self._nodes, self._raw
        fresh = [feature]
        for order, gap in enumerate(gaps(self.forecast, x, past)):
            if order >= len(old):
                break
            fresh.append((fresh[order] - old[order]) / gap)
        if self.forecast.smoothing and len(fresh) > 1 and len(old) > 1:
            fresh[1] = torch.lerp(fresh[1], old[1].to(fresh[1].dtype), self.forecast.smoothing)
        terms = [self._value(feature), *(self._shape(difference, gain) for difference in fresh[1:])]
        # Older differences are needed only to make higher or smoothed ones.
        keep = self.forecast.effective_order if not self.forecast.smoothing else self.forecast.effective_order + 1
        kept = self._stored([*fresh[: max(1, keep)], *terms])
        self._raw, self._terms = kept[: -len(terms)], kept[-len(terms) :]
        self._nodes = [x, *past][: self.forecast.effective_order + 1]

    @property
    def _wide(self) -> torch.dtype:
        """What sums are made in."""
        return torch.promote_types(self._given, self.dtype or self._given)

    def _stored(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """As they are kept; what was one tensor stays one."""
        kept = {id(tensor): tensor.to(self.dtype or self._given) for tensor in tensors}
        return [kept[id(tensor)] for tensor in tensors]

    def _value(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature, its principal part averaged over the full steps if the forecast asks for that."""
        if not self.forecast.level or self.split is None:
            return feature
        principal = self.split.principal(feature)
        older = principal if self._level is None else self._level.to(principal.dtype)
        level = torch.lerp(principal, older, self.forecast.level)
        (self._level,) = self._stored([level])
        return feature + (level - principal)

    def _shape(self, difference: torch.Tensor, gain: float) -> torch.Tensor:
        principal, residual = (gain * part for part in self.forecast.gains)
        if self.split is None or principal == residual:
            return difference if principal == 1 else principal * difference
        excess = (principal - residual) * self.split.principal(difference)
        return excess if residual == 0 else torch.add(excess, difference, alpha=residual)

    def predict(self, x: float) -> torch.Tensor:
        """The feature (B, N, D) at another coordinate. Before a second full step it is plain reuse.

        Raises:
            StackError: no full step has run.
        """
        if not self._raw:
            raise StackError("nothing to predict from: no full step has run in this request")
        out = self._terms[0].to(self._wide)
        factors = weights(self.forecast, x, self._nodes[: len(self._terms)])
        for term, factor in zip(self._terms[1:], factors[1:], strict=True):
            out = torch.add(out, term, alpha=factor)
        return out.to(self._given)
