"""What can be measured on a stack as it is, and put back into its passes: the methods of `Stack` that take a while."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import fitting
from .caching.bases import Bases
from .caching.calibration.calibrate import Budget, Calibration, calibrate
from .caching.calibration.goals import Goal
from .caching.fastcache.maps import LinearMaps
from .compat.kept import Kept
from .quant.analysis.depends import APPROXIMATE, dependencies
from .quant.analysis.floor import NoiseFloor, measure_floor
from .quant.analysis.planning import analyse
from .quant.analysis.sensitivity import Sensitivity

if TYPE_CHECKING:
    from .builder import Stack


class Measuring:
    """The part of a stack that measures. One measurement or call at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._floor: Kept[NoiseFloor] = Kept()

    @property
    def _stack(self) -> Stack:
        return cast("Stack", self)

    def calibrate(
        self,
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
            full_steps, psnr, seconds: what to reach, see `stack.caching.calibration.goals.Goal`; one of them, or none
                for as many full steps as the cache has now.
            trials: runs of the whole batch of prompts to spend.
            budget: seconds to spend, the check on held-out prompts included.
            theory: start from the schedule that the recorded errors recommend; see `stack.caching.calibration.theory`.

        Raises:
            StackError: see `stack.caching.calibration.calibrate.calibrate`.
        """
        with self._lock:
            goal, spend = Goal(full_steps, psnr, seconds), Budget(trials, budget)
            return calibrate(self._stack, prompts, held_out, goal, seed, spend, progress, theory)[1]

    def sensitivity(
        self, prompts: Sequence[str], schemes: Sequence[str] = (), seed: int = 0, steps: int = 6, progress: bool = True
    ) -> Sensitivity:
        """Measure what rounding each linear costs; a pass with `max_error` or `max_bytes` gets the mix it asks for.

        Arguments and errors are those of `stack.quant.analysis.planning.analyse`.
        """
        with self._lock:
            return analyse(self._stack, prompts, schemes, seed, steps, progress)

    def noise_floor(
        self, prompts: Sequence[str], seed: int = 0, steps: int = 6, neighbours: int = 4, progress: bool = True
    ) -> NoiseFloor:
        """Measure what quantization and sparse attention add to one forward pass; see
        `stack.quant.analysis.floor.measure_floor`.

        A cache in the stack is told the random part, and forecasts no further than what stands out of it.
        """
        with self._lock:
            floor = self._floor.keep(measure_floor(self._stack, prompts, seed, steps, neighbours, progress))
            fitting.tell_noise(self._stack, floor)
            return floor

    @property
    def floor(self) -> NoiseFloor | None:
        """The noise floor as last measured; None where there is none, or where what it depends on has changed."""
        return self._floor.current(dependencies(self._stack, APPROXIMATE))

    def fit_gate(self, prompts: Sequence[str], seed: int = 0) -> Stack:
        """Measure what a "magnitude" or "polynomial" gate needs; see `stack.fitting.fit_gate`."""
        with self._lock:
            fitting.fit_gate(self._stack, prompts, seed)
            return self._stack

    def fit_maps(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        ridge: float = 1e-3,
        rank: int = 0,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> LinearMaps:
        """Fit FastCache's linear maps; see `stack.fitting.fit_maps`."""
        with self._lock:
            return fitting.fit_maps(self._stack, prompts, seed, ridge, rank, save, progress)

    def fit_bases(self, prompts: Sequence[str], seed: int = 0, save: str | Path | None = None) -> Bases:
        """Find the cache's principal subspaces offline; see `stack.fitting.fit_bases`."""
        with self._lock:
            return fitting.fit_bases(self._stack, prompts, seed, save)
