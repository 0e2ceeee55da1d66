"""Adaptive decisions: small state machines over numbers. One per sample and request; pure, tested without a model.

`change` is the relative change mean|p - q| / mean|q| of the gate's probe since its reference: since the last full step
where `holds_reference`, else since the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..core.errors import StackError
from .spending import Spending, Takes


class Gate(Protocol):
    """Decides step by step whether the blocks can be skipped.

    Attributes:
        probe: what it looks at: "modulated" (the first block's modulated input), "prefix" (what the front blocks
            added), or "" (nothing).
        holds_reference: whether the probe is compared with that of the last full step.
    """

    @property
    def probe(self) -> str: ...

    @property
    def holds_reference(self) -> bool: ...

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        """Whether to skip this step; `run` cached steps have gone before it. Called once per step, in order."""
        ...


@dataclass
class PrefixGate:
    """First-block cache and DBCache: skip while the front blocks add nearly what they added at the last full step.

    Args:
        threshold: on the relative change; 0.08 is usual for one front block.
        warmup: the first steps always run.
        longest: cached steps in a row; 0 is no limit.
    """

    threshold: float
    warmup: int = 1
    longest: int = 0
    probe: ClassVar[str] = "prefix"
    holds_reference: ClassVar[bool] = True

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        if change is None or step < self.warmup or (self.longest and run >= self.longest):
            return False
        return change < self.threshold


@dataclass
class PolynomialGate:
    """TeaCache (CVPR 2025): a polynomial turns the change of the modulated input into that of the output; skip while
    its sum since the last full step stays under a threshold. The first and the last step always run.

    Args:
        coefficients: highest power first; measured by a calibration run on the stack.
    """

    threshold: float
    coefficients: tuple[float, ...]
    probe: ClassVar[str] = "modulated"
    holds_reference: ClassVar[bool] = False
    total: float = 0.0

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        if change is None or step in (0, steps - 1):
            self.total = 0.0
            return False
        self.total += float(np.polyval(self.coefficients, change))
        if self.total < self.threshold:
            return True
        self.total = 0.0
        return False


@dataclass
class MagnitudeGate:
    """MagCache (NeurIPS 2025): the residual's norm changes by known ratios; skip while their product stays near 1.

    Args:
        ratios: mean |r_t| / |r_(t-1)| per step of the calibration run; ratios[0] is not used. Another number of steps
            takes the nearest entry.
        longest: cached steps in a row.
        retention: share of the steps, at the start, that always run.
    """

    threshold: float
    ratios: tuple[float, ...]
    longest: int = 3
    retention: float = 0.2
    probe: ClassVar[str] = ""
    holds_reference: ClassVar[bool] = True
    error: float = 0.0
    product: float = 1.0

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        if step >= max(1, round(self.retention * steps)):
            product = self.product * nearest(self.ratios, step, steps)
            error = self.error + abs(1 - product)
            if error <= self.threshold and run < self.longest:
                self.product, self.error = product, error
                return True
        self.product, self.error = 1.0, 0.0
        return False


@dataclass
class SumGate:
    """EasyCache and RFC: skip while the sum of the changes since the last full step, each times a slope, stays under a
    threshold. The site says what changes.

    Args:
        warmup: the first steps always run.
        longest: cached steps in a row; 0 is no limit.
        slope: None until the site has measured it (EasyCache's k, see `sites.whole_model`): no step is skipped.
        ends: the last step always runs.
    """

    threshold: float
    warmup: int = 1
    longest: int = 0
    slope: float | None = 1.0
    ends: bool = False
    probe: ClassVar[str] = ""
    holds_reference: ClassVar[bool] = True
    total: float = 0.0

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        known = change is not None and self.slope is not None
        if known and step >= self.warmup and not (self.ends and step == steps - 1):
            assert change is not None and self.slope is not None
            self.total += self.slope * change
            if self.total < self.threshold and not (self.longest and run >= self.longest):
                return True
        self.total = 0.0
        return False

    def ran(self, slope: float | None = None) -> None:
        """The step has run in full, whatever was decided; with a slope measured anew, if there is one."""
        self.total = 0.0
        self.slope = self.slope if slope is None else slope


@dataclass
class DraftGate:
    """SpeCa: every step after the warm-up is a draft, to be checked on the last block and rolled back if it fails.

    Args:
        longest: drafts in a row.
    """

    warmup: int = 3
    longest: int = 8
    probe: ClassVar[str] = ""
    holds_reference: ClassVar[bool] = True

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        return step >= self.warmup and run < self.longest


@dataclass
class BudgetGate:
    """Skip until the next full step that the estimated error of the final picture asks for.

    Args:
        spending: does the sums.
        corrected: the corrector measures the errors; else the site's own forecasts are compared.
        warmup: the first steps always run.
        longest: cached steps in a row; 0 is no limit.
    """

    spending: Spending
    corrected: bool = True
    warmup: int = 1
    longest: int = 0
    takes: Takes | None = None
    probe: ClassVar[str] = ""
    holds_reference: ClassVar[bool] = True

    def ran(self, step: int) -> None:
        """The step has run in full; `takes` is for what it measures."""
        self.takes = self.spending.ran(step)

    def skip(self, step: int, steps: int, change: float | None, run: int) -> bool:
        return step >= self.warmup and not (self.longest and run >= self.longest) and not self.spending.due(step)


def nearest(table: Sequence[float], step: int, steps: int) -> float:
    """The entry for a step of another number of steps.

    Raises:
        StackError: the table is empty.
    """
    if not table:
        raise StackError("expected the ratios of a calibration run, got none: call stack.fit_gate(prompts) first")
    return table[min(len(table) - 1, round(step * (len(table) - 1) / max(1, steps - 1)))]
