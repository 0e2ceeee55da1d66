"""Calibration: choose the full steps and the gains of a cache by the final picture, on the stack as it really is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import StackError
from ..measure.metrics import psnr
from ..models.sampler import error_weights, sampler_steps
from ..passes.cache import Cache
from .propose import WHOLE, Proposer
from .search import Candidate, search, spread
from .trajectory import Recorder, SegmentErrors, Trajectory, growth

if TYPE_CHECKING:
    from ..builder import Stack

DISTURBED = (1, 2)  # steps that reuse step 0 in the run that shows how a difference grows
SCHEDULED = ("output", "residual", "blocks", "modules", "attention")  # sites that follow a schedule of full steps
DISAGREE_DB = 3.0  # more than this between calibration and held-out prompts means the search has fitted its prompts


@dataclass(frozen=True)
class Calibration:
    """What a calibration found. PSNR in dB, on pictures in [0, 1], against the same stack without its cache.

    Attributes:
        psnr_db, held_out_psnr_db: of the found schedule, on the prompts searched on and on others.
        uniform_psnr_db: of evenly spread full steps with SVD-Cache's own gains, on the prompts searched on.
    """

    full_steps: tuple[int, ...]
    steps: int
    gains: tuple[float, float]
    psnr_db: float
    held_out_psnr_db: float
    uniform_psnr_db: float
    trials: int
    seconds: float

    @property
    def generalises(self) -> bool:
        """Whether held-out prompts agree with the ones searched on."""
        return self.psnr_db - self.held_out_psnr_db < DISAGREE_DB

    def __str__(self) -> str:
        doubt = "" if self.generalises else "; WARNING: held-out prompts disagree, give it more prompts"
        return (
            f"{len(self.full_steps)} of {self.steps} steps full: {' '.join(map(str, self.full_steps))}; "
            f"gains {self.gains[0]:g} / {self.gains[1]:g}; {self.psnr_db:.1f} dB on its prompts, "
            f"{self.held_out_psnr_db:.1f} dB held out, {self.uniform_psnr_db:.1f} dB for the uniform start; "
            f"{self.trials} trials in {self.seconds:.0f} s{doubt}"
        )


def calibrate(
    stack: Stack,
    prompts: Sequence[str],
    full_steps: int,
    steps: int,
    held_out: Sequence[str],
    seed: int,
    trials: int,
    progress: bool,
    seconds: float = 60.0,
    theory: bool = True,
) -> tuple[Cache, Calibration]:
    """Search a schedule for the cache of an applied stack; leaves the stack with the best one on.

    The prompts' uncached runs are recorded once. From them schedules are proposed (`Proposer`), and finished pictures
    decide.

    Args:
        seconds: no trial starts later than this.
        theory: whether to try proposed schedules first, rather than spreads.

    Raises:
        StackError: no cache in the stack, no pipeline, fewer than two prompts, or an impossible number of full steps.
    """
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    _refuse(stack, cache, prompts, held_out, full_steps, steps)
    assert cache is not None
    started = time.monotonic()

    def pictures(candidate: Any, which: Sequence[str], first_seed: int) -> torch.Tensor:
        stack.replace(candidate)
        generators = [torch.Generator().manual_seed(first_seed + i) for i in range(len(which))]
        return stack(list(which), num_inference_steps=steps, generator=generators, output_type="pt").images

    def score(candidate: Candidate) -> float:
        tried = cache.calibrated(candidate.full_steps, steps, candidate.gains)
        return psnr(pictures(tried, prompts, seed), target)

    plain, disturbed = Trajectory(), Trajectory()
    try:
        target = pictures(Recorder(plain), prompts, seed)
        propose = None
        if theory and cache.policy.site in ("output", "residual") and cache.policy.order == 1:
            pictures(Recorder(disturbed, DISTURBED), prompts[:1], seed)
            scale = error_weights(sampler_steps(stack.pipe), growth(plain, disturbed, DISTURBED[-1] + 1))
            whole = replace(cache.policy.forecast, gains=WHOLE, level=0.0)
            propose = Proposer(SegmentErrors(plain, scale, whole), full_steps, steps)
        with _bar(trials, progress) as tell:
            found = search(
                score, full_steps, steps, trials, lambda c, value: tell(value), propose,
                lambda: time.monotonic() - started < seconds,
            )  # fmt: skip
    finally:
        stack.replace(cache)
    best = cache.calibrated(found.best.full_steps, steps, found.best.gains)
    away = seed + 10_000
    held = psnr(pictures(best, held_out, away), pictures(Recorder(Trajectory()), held_out, away))
    stack.replace(best)
    uniform = Candidate(spread(full_steps, steps, 1.0), (1.0, 0.0))
    result = Calibration(
        full_steps=best.full_steps,
        steps=steps,
        gains=best.gains,
        psnr_db=found.score,
        held_out_psnr_db=held,
        uniform_psnr_db=dict(found.trials)[uniform],
        trials=len(found.trials),
        seconds=time.monotonic() - started,
    )
    return best, result


def _refuse(
    stack: Stack, cache: Cache | None, prompts: Sequence[str], held_out: Sequence[str], full_steps: int, steps: int
) -> None:
    if cache is None:
        raise StackError("nothing to calibrate: expected a stack with a cache, add .cache('svd')")
    if cache.policy.gate or cache.policy.site not in SCHEDULED:
        raise StackError(f"{cache.method} has no schedule to search: its steps are decided by a gate or a cycle")
    if stack.pipe is None:
        raise StackError("calibration judges finished pictures: expected Stack(pipeline), got a bare denoiser")
    if len(prompts) < 2 or not held_out:
        raise StackError(
            f"expected at least 2 prompts to search on and 1 held out, got {len(prompts)} and {len(held_out)}"
        )
    if set(prompts) & set(held_out):
        raise StackError("held-out prompts must not be among the prompts searched on")
    if not 2 <= full_steps < steps:
        raise StackError(f"full_steps must be in 2..{steps - 1}, got {full_steps}")


def _bar(trials: int, progress: bool) -> AbstractContextManager[Callable[[float], None]]:
    if not progress:
        return nullcontext(lambda value: None)
    return _Bar(trials)


class _Bar:
    """A progress bar that shows the best score so far."""

    def __init__(self, trials: int):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns: list[Any] = [TextColumn("calibrating"), BarColumn(), TextColumn("best {task.fields[best]}")]
        self._progress = Progress(*columns, TimeRemainingColumn(), transient=True)
        self._best = -math.inf
        self._task = self._progress.add_task("", total=trials, best="-")

    def __enter__(self) -> Callable[[float], None]:
        self._progress.start()
        return self._tell

    def _tell(self, value: float) -> None:
        self._best = max(self._best, value)
        self._progress.update(self._task, advance=1, best=f"{self._best:.1f} dB")

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
