"""The final sample's error in a report: what was allowed, what is estimated, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from ..bounds import final_error_bound


class Step(Protocol):
    """What is looked at of a `stack.runtime.report.StepRecord`."""

    sigma: float
    branch: str
    kind: str
    error: float | None


def summed_error(steps: Sequence[Step], full: str) -> float | None:
    """Error of the final sample from the forecasts' measured errors, over the whole way from noise to sample.

    A forecast's error is known on the full step that ends a run of cached ones, and used for all steps of the run,
    though they are nearer to the full step before; steps after the last such measurement use that one. They go through
    the sampler as in `bounds.final_error_bound` for a model that passes errors on as they are. The worst branch counts.

    Returns:
        None where no forecast was measured.
    """
    branches = [[step for step in steps if step.branch == name] for name in {step.branch: None for step in steps}]
    sums = [_sum(branch, full) for branch in branches]
    return max((error for error in sums if error is not None), default=None)


def _sum(steps: Sequence[Step], full: str) -> float | None:
    sigmas = [step.sigma for step in steps] + [0.0]
    gaps = [b - a for a, b in pairwise(sigmas)]
    measured = [step.error for step in steps]
    known = next((error for error in reversed(measured) if error is not None), None)
    if known is None or not sum(gaps):
        return None
    errors: list[float] = []
    for step, error in reversed(list(zip(steps, measured, strict=True))):
        known = error if error is not None else known
        errors.insert(0, 0.0 if step.kind == full else known)
    return final_error_bound(errors, gaps) / abs(sum(gaps))


def final_error_words(summed: float | None, cache: Mapping[str, Any]) -> str:
    """One line, or "" where nothing is known.

    Args:
        summed: from `summed_error`.
        cache: figures of the cache, with those of its error budget if it has one.
    """
    words = []
    if "allowed_error" in cache:
        words.append(f"{cache['allowed_error']:.2%} allowed")
    if "estimated_error" in cache:
        words.append(f"{cache['estimated_error']:.2%} estimated")
    elif summed is not None:
        words.append(f"{summed:.2%} at most, if the model does not amplify errors (sum over the steps)")
    if cache.get("fitted_error"):
        words.append(f"{cache['fitted_error']:.2%} measured at worst by fit_gate")
    if cache.get("below_error"):
        words.append(f"{cache['below_error']:.2%} more from the passes below, measured by fit_gate")
    return f"final error: {', '.join(words)}" if words else ""
