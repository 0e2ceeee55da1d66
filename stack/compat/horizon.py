"""Schedules on other noise levels: transferring one, estimating its error, what few steps can save. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def weights_of(sigmas: Sequence[float]) -> list[float]:
    """Each step's share of the whole change in noise level; the last one goes to 0. Equal shares where none changes."""
    gaps = [abs(a - b) for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True)]
    gaps = gaps if any(gaps) else [1.0] * len(gaps)
    return [gap / sum(gaps) for gap in gaps]


def transfer_schedule(at: Sequence[float], sigmas: Sequence[float]) -> tuple[int, ...]:
    """The full steps of a schedule transferred to another one, each to the step nearest in noise level.

    The trajectory is a function of the noise level, not of the number of a step. Full steps that fall together are one,
    and the first step is always full.

    Args:
        at: noise levels of the full steps, largest first.
        sigmas: of the new schedule, largest first.
    """
    nearest = {min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - level)) for level in at}
    return tuple(sorted({0} | nearest))


def uniform_levels(full: Sequence[int], steps: int) -> tuple[float, ...]:
    """The unshifted times of these steps, used as their noise levels where those are not known."""
    return tuple(1 - step / steps for step in full)


def forecast_cost(full: Sequence[int], sigmas: Sequence[float], order: int) -> float:
    """The final error of a schedule up to the trajectory's own rate: sum over cached steps of w g^(p+1).

    w is a step's share of the noise level, g its distance from the last full step: Taylor's remainder of the forecast.
    """
    weights, last, total = weights_of(sigmas), 0, 0.0
    chosen = set(full)
    for step, weight in enumerate(weights):
        last = step if step in chosen else last
        total += weight * abs(sigmas[step] - sigmas[last]) ** (order + 1)
    return total


def partial_depth(blocks: int) -> tuple[int, int]:
    """How many front and back blocks run on every step where steps are few: a third each; at least one is cached."""
    third = max(1, round(blocks / 3))
    return third, max(0, min(third, blocks - third - 1))


def most_saved(full: int, steps: int, always: float = 0.0) -> float:
    """The largest speedup of a schedule, in block calls.

    Args:
        always: share of the blocks that runs on cached steps too.
    """
    return steps / (full + (steps - full) * always)
