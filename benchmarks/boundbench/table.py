"""Every bound with its tightness: bound over truth on typical inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from . import trajectories, weights

SEEDS = 40
LOOSEST = 100.0


@dataclass(frozen=True)
class Case:
    """One bound on typical inputs.

    Attributes:
        bound: its name in `stack.bounds` or `boundbench.documented`.
        ratios: seed to bound over truth, one or several.
        at_most: what the median stays below; docs and tests state it.
        kind: "bound" is never below 1; "likely" may be, in one of a thousand draws; "mean" is 1 on average.
    """

    bound: str
    ratios: Callable[[int], list[float]]
    at_most: float
    kind: str = "bound"

    def measured(self, seeds: int = SEEDS) -> list[float]:
        """Ratios of all seeds."""
        return [ratio for seed in range(seeds) for ratio in self.ratios(seed)]


CASES = (
    Case("int8_matmul_bound", weights.product, 100.0),
    Case("int8_matmul_likely_bound", weights.likely_product, 15.0, "likely"),
    Case("level_rounding_bound", weights.levels, 10.0),
    Case("merged_share", weights.merged, 1.02, "mean"),
    Case("truncation_error", weights.truncation, 1.001, "mean"),
    Case("sin_theta_bound", weights.angle, 10.0),
    Case("dropped_mass_bound", weights.dropped, 20.0),
    Case("moved_scores_bound", weights.moved, 40.0),
    Case("filler_share_bound", weights.fillers, 3.0),
    Case("hoeffding_margin", weights.sampled, 15.0, "likely"),
    Case("forecast_bound", trajectories.forecast, 1.5),
    Case("forecast_bound, noise", trajectories.noisy_forecast, 3.0),
    Case("shrunken_forecast_bound", trajectories.shrunken_forecast, 3.0),
    Case("shrunken_error", trajectories.shrinkage, 1.02, "mean"),
    Case("average_bound", trajectories.average, 3.0),
    Case("final_error_bound", trajectories.final, 10.0),
)


def row_of(case: Case) -> dict[str, Any]:
    """Median, smallest and largest ratio of a bound."""
    found = case.measured()
    return {
        "bound": case.bound,
        "median": median(found),
        "least": min(found),
        "most": max(found),
        "stated": case.at_most,
        "draws": len(found),
    }
