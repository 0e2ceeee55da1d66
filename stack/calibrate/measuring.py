"""What is measured on a stack as it is, and put back into its passes: the methods of `Stack` that take a while.

Each function holds the stack's lock: one measurement or call goes on at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..caching.bases import Bases
from ..caching.fastcache.maps import LinearMaps
from ..runtime.stack_like import AnyStack, StackLike
from . import fitting, rounding_fit
from .calibrate import Calibration, SearchBudget
from .calibrate import calibrate as search_cache
from .goals import Goal
from .memoized import MemoizedAnalysis
from .quant.depends import APPROXIMATE, dependencies
from .quant.floor import NoiseFloor, measure_floor


def calibrate(
    stack: StackLike,
    prompts: Sequence[str],
    held_out: Sequence[str],
    full_steps: int = 0,
    psnr: float = 0.0,
    seconds: float = 0.0,
    seed: int = 0,
    trials: int = 60,
    budget: float = 60.0,
    progress: bool = True,
    theory: bool = True,
) -> Calibration:
    """Search the cache's full steps and forecast on finished pictures, check them on other prompts, keep the best.

    Runs on the stack as it is: quantized, sparse, distilled. The result is in the stack's cache pass afterwards.

    Args:
        prompts: at least two, better four or more, each with its own seed from `seed` on.
        held_out: other prompts. Their PSNR is reported; they have a say only where it is 3 dB lower, see
            `Calibration.compared`.
        full_steps, psnr, seconds: what to reach, see `stack.calibrate.goals.Goal`; one of them, or none for as many
            full steps as the cache has now.
        trials: runs of the whole batch of prompts to spend.
        budget: seconds to spend, the check on held-out prompts included.
        theory: start from the schedule that the recorded errors recommend; see `stack.calibrate.theory`.

    Raises:
        StackError: see `stack.calibrate.calibrate.calibrate`.
    """
    with stack.lock:
        goal, spend = Goal(full_steps, psnr, seconds), SearchBudget(trials, budget)
        return search_cache(stack, prompts, held_out, goal, seed, spend, progress, theory)[1]


def fit_rounding(
    stack: AnyStack, prompts: Sequence[str], seed: int = 0, steps: int = 6, progress: bool = True
) -> AnyStack:
    """Round 4-bit weights with error feedback; see `stack.calibrate.rounding_fit.fit_rounding`."""
    with stack.lock:
        rounding_fit.fit_rounding(stack, prompts, seed, steps, progress)
        return stack


def noise_floor(
    stack: StackLike, prompts: Sequence[str], seed: int = 0, steps: int = 6, neighbours: int = 4, progress: bool = True
) -> NoiseFloor:
    """Measure what quantization and sparse attention add to one forward pass; see
    `stack.calibrate.quant.floor.measure_floor`.

    The random part is put into the stack's cache, which then forecasts no further than what stands out of it.
    """
    with stack.lock:
        found = measure_floor(stack, prompts, seed, steps, neighbours, progress)
        stack.analyses.setdefault("noise floor", MemoizedAnalysis()).keep(found)
        fitting.tell_noise(stack, found)
        return found


def floor_of(stack: StackLike) -> NoiseFloor | None:
    """The noise floor as last measured; None where there is none, or where what it depends on has changed."""
    kept: MemoizedAnalysis[NoiseFloor] = stack.analyses.setdefault("noise floor", MemoizedAnalysis())
    return kept.current(dependencies(stack, APPROXIMATE))


def fit_gate(stack: AnyStack, prompts: Sequence[str], seed: int = 0) -> AnyStack:
    """Measure what a "magnitude", "polynomial" or "budget" gate needs; see `stack.calibrate.fitting.fit_gate`."""
    with stack.lock:
        fitting.fit_gate(stack, prompts, seed)
        return stack


def fit_maps(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int = 0,
    ridge: float = 1e-3,
    rank: int = 0,
    save: str | Path | None = None,
    progress: bool = True,
) -> LinearMaps:
    """Fit FastCache's linear maps; see `stack.calibrate.fitting.fit_maps`."""
    with stack.lock:
        return fitting.fit_maps(stack, prompts, seed, ridge, rank, save, progress)


def fit_bases(stack: StackLike, prompts: Sequence[str], seed: int = 0, save: str | Path | None = None) -> Bases:
    """Find the cache's principal subspaces offline; see `stack.calibrate.fitting.fit_bases`."""
    with stack.lock:
        return fitting.fit_bases(stack, prompts, seed, save)
