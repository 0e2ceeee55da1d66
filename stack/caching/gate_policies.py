"""The gates as choices: what each needs, where it suits, and how its state machine (`stack.caching.gates`) starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ..core.errors import StackError
from ..core.passes import Finding
from ..core.validate import Count, NotNegative, Share
from ..models.schedule import SigmaSchedule
from .contract import GatePolicy, PolicyLike, register_gate
from .gates import BudgetGate, DraftGate, Gate, MagnitudeGate, PolynomialGate, PrefixGate, SumGate
from .noise_schedule import flow_levels
from .outlook import outlook, planned_levels
from .spending import Spending

BLOCK_RANGES = ("output", "residual")


@dataclass(frozen=True)
class _ThresholdPolicy(GatePolicy):
    """A gate with one threshold.

    Attributes:
        threshold: a step is skipped while the gate measures less than this.
    """

    threshold: NotNegative = 0.0

    @property
    def bound(self) -> str:
        return f"threshold {self.threshold:.3g}"

    def loosened(self, factor: float) -> Self:
        return replace(self, threshold=self.threshold * factor)


@register_gate
@dataclass(frozen=True)
class PrefixPolicy(_ThresholdPolicy):
    """By what the front blocks add, see `PrefixGate`.

    Attributes:
        longest: cached steps in a row; 0 is no limit.
    """

    name: ClassVar[str] = "prefix"
    looks_at: ClassVar[str] = "how far what the front blocks add has changed since the last full step"
    sites: ClassVar[tuple[str, ...]] = BLOCK_RANGES
    keeps_probe: ClassVar[bool] = True

    longest: Count = 0

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        return PrefixGate(self.threshold, policy.schedule.warmup, self.longest)


@register_gate
@dataclass(frozen=True)
class PolynomialPolicy(_ThresholdPolicy):
    """By a polynomial of the change of the modulated input, see `PolynomialGate`.

    Attributes:
        coefficients: of the polynomial, highest power first, from `Stack.fit_gate`; none sums the bare change.
    """

    name: ClassVar[str] = "polynomial"
    looks_at: ClassVar[str] = "the changes of the first block's modulated input, summed since the last full step"
    sites: ClassVar[tuple[str, ...]] = BLOCK_RANGES
    keeps_probe: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("modulation",)
    fitted_by: ClassVar[str] = "a polynomial"

    coefficients: tuple[float, ...] = ()

    @property
    def fitted(self) -> bool:
        return bool(self.coefficients)

    def unfitted(self, method: str, stage: str) -> list[Finding]:
        if self.coefficients:
            return []
        why = "the bare change is summed; call fit_gate(prompts) for it"
        return [Finding(stage, f"{method} has no measured polynomial", why, note=True)]

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        return PolynomialGate(self.threshold, self.coefficients or (1.0, 0.0))


@register_gate
@dataclass(frozen=True)
class MagnitudePolicy(_ThresholdPolicy):
    """By measured ratios of the residual's norm, see `MagnitudeGate`.

    Attributes:
        longest: cached steps in a row; 0 is no limit.
        retention: share of the steps, at the start, that always run.
        ratios: of the norm of what the blocks add to that of the step before, for each step, from `Stack.fit_gate`.
    """

    name: ClassVar[str] = "magnitude"
    looks_at: ClassVar[str] = "measured ratios of what the blocks add from step to step"
    sites: ClassVar[tuple[str, ...]] = BLOCK_RANGES
    reads_per_step: ClassVar[int] = 0
    fitted_by: ClassVar[str] = "ratios"

    longest: Count = 0
    retention: Share = 0.2
    ratios: tuple[float, ...] = ()

    @property
    def fitted(self) -> bool:
        return bool(self.ratios)

    def unfitted(self, method: str, stage: str) -> list[Finding]:
        if self.ratios:
            return []
        what = f"{method} needs the ratios of a measuring run: call fit_gate(prompts) first"
        return [Finding(stage, what, fatal=True)]

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        return MagnitudeGate(self.threshold, self.ratios, self.longest, self.retention)


@register_gate
@dataclass(frozen=True)
class SumPolicy(_ThresholdPolicy):
    """By the sum of the changes that the site measures, see `SumGate`.

    Attributes:
        longest: cached steps in a row; 0 is no limit.
    """

    name: ClassVar[str] = "sum"
    looks_at: ClassVar[str] = "the changes that are measured on every step, summed since the last full one"
    sites: ClassVar[tuple[str, ...]] = ("whole-model", "relational")

    longest: Count = 0

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        measured = policy.site.measures_slope
        slope = None if measured else 1.0
        return SumGate(self.threshold, policy.schedule.warmup, self.longest, slope=slope, ends=measured)


@register_gate
@dataclass(frozen=True)
class DraftPolicy(GatePolicy):
    """Every step is a draft, see `DraftGate`.

    Attributes:
        longest: drafts in a row.
        accept: (base, decay, floor) of SpeCa's bound on a draft's error, max(floor, base * decay^(step / steps)); None
            checks nothing.
    """

    name: ClassVar[str] = "draft"
    looks_at: ClassVar[str] = "a check of every forecast on a block behind it"
    sites: ClassVar[tuple[str, ...]] = BLOCK_RANGES
    correctable: ClassVar[bool] = False

    longest: Count = 0
    accept: tuple[NotNegative, NotNegative, NotNegative] | None = None

    @property
    def bound(self) -> str:
        if self.accept is None:
            return "no draft checked"
        return "drafts kept up to a relative error of {:g} * {:g}^(step / steps), at least {:g}".format(*self.accept)

    def validate(self, policy: PolicyLike) -> None:
        if self.accept and not policy.site.back_blocks:
            raise StackError("drafts are checked on a back block: expected back=1 or more, got 0")

    def loosened(self, factor: float) -> DraftPolicy:
        if self.accept is None:
            return self
        base, decay, floor = self.accept
        return replace(self, accept=(base * factor, decay, floor * factor))

    def accepts(self, step: int, steps: int) -> float:
        """The largest relative error of a draft's check on this step."""
        assert self.accept is not None
        base, decay, floor = self.accept
        return max(floor, base * decay ** (step / steps))

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        return DraftGate(policy.schedule.warmup, self.longest)


@register_gate
@dataclass(frozen=True)
class BudgetPolicy(_ThresholdPolicy):
    """By the estimated error of the final sample, which may reach `threshold`, see `stack.caching.spending`.

    Attributes:
        longest: cached steps in a row; 0 is no limit.
        lead: share of the steps, at the start, that always run, from `Stack.fit_gate`; for models whose first steps
            decide the layout.
        error_scale: measured error over the estimate, from `Stack.fit_gate`.
        below_error, measured_error: error of the passes below the cache, and largest error of the cache, as measured by
            `Stack.fit_gate`.
    """

    name: ClassVar[str] = "budget"
    option: ClassVar[str] = "max_error"
    sites: ClassVar[tuple[str, ...]] = BLOCK_RANGES
    fitted_by: ClassVar[str] = "the scale of its estimate"
    self_timed: ClassVar[bool] = True
    reads_per_step: ClassVar[int] = 0

    longest: Count = 0
    lead: Share = 0.0
    error_scale: NotNegative = 1.0
    below_error: NotNegative = 0.0
    measured_error: NotNegative = 0.0

    @property
    def words(self) -> str:
        fitted = f"estimate times {self.error_scale:.2g}, as fitted" if self.fitted else "estimate not fitted"
        lead = f"; the first {self.lead:.0%} always run" if self.lead else ""
        return (
            "full steps chosen for every sample by what the last one measured of its forecasts, "
            f"while the final error is estimated within {self.threshold:g} ({fitted}){lead}"
        )

    @property
    def fitted(self) -> bool:
        return self.error_scale != 1

    def unfitted(self, method: str, stage: str) -> list[Finding]:
        if self.fitted:
            return []
        what = "the error estimate has not been fitted to finished samples"
        return [Finding(stage, what, "fit_gate(prompts) does it", note=True)]

    def validate(self, policy: PolicyLike) -> None:
        back = policy.site.back_blocks
        if back or not 0 < self.threshold < 1:
            given = f"back={back}, max_error={self.threshold:g}"
            raise StackError(f"an error budget needs back=0 and a relative error in (0, 1), such as 0.02: got {given}")

    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        levels, places = planned_levels(sigma_schedule.levels or flow_levels(len(sigma_schedule.sigmas)))
        ahead = outlook(levels, min(1, policy.forecast.effective_order), policy.corrected)
        spending = Spending(self.threshold, ahead, places, self.error_scale)
        own = policy.schedule.warmup if policy.schedule.spread == "even" else 1
        lead = math.ceil(self.lead * len(sigma_schedule.sigmas))
        return BudgetGate(spending, policy.corrected, max(own, lead), self.longest)
