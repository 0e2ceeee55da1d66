"""What a calibration found, as data and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..caching.cache import Cache
from ..core.progress import counted
from .curve import CurvePoint, curve_table

DISAGREE_DB = 3.0  # more than this between calibration and held-out prompts means the search has fitted its prompts


@dataclass(frozen=True)
class Calibration:
    """What a calibration found. PSNR in dB, on pictures in [0, 1], against the same stack without its cache.

    Attributes:
        cache: the cache with what was chosen.
        full: full steps of a request, on average.
        psnr_db, held_out_psnr_db: of that, mean over the prompts searched on and over others.
        start_psnr_db: of the start, on the prompts searched on: evenly spread full steps with the cache's own forecast,
            or the cache's own threshold.
        remembered: share of the trials' full steps that an earlier trial had computed.
        compared: candidates between which the held-out prompts decided as well, because they disagreed with the best of
            the search; `held_out_psnr_db` is then that of the same prompts with other seeds. 0 if they agreed.
        hurried: whether time ended the search of a schedule before it had made a handful of trials, as a busy machine
            or long requests make it.
        kept: the cache that was there stays: nothing that does what was asked was better on the held-out prompts.
        before_psnr_db: of the cache that was there, on the prompts searched on.
        learned: kind of the corrections that were learnt on top, see `stack.caching.learned`; "" for none: there was no
            time, or they did not win on the held-out prompts.
        left_out: prompts that there was no time for.
        curve: PSNR by number of full steps, as measured on the prompts searched on, from few to many.
        interrupted: by Ctrl-C; `held_out_psnr_db` is NaN where that was before the check.
    """

    cache: Cache
    steps: int
    full: float
    psnr_db: float
    held_out_psnr_db: float
    start_psnr_db: float
    trials: int
    seconds: float
    remembered: float = 0.0
    compared: int = 0
    hurried: bool = False
    kept: bool = False
    before_psnr_db: float = math.nan
    left_out: int = 0
    interrupted: bool = False
    learned: str = ""
    curve: tuple[CurvePoint, ...] = ()

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that run in full; empty where a gate decides."""
        return self.cache.full_steps

    @property
    def checked(self) -> bool:
        """Whether held-out prompts were run."""
        return not math.isnan(self.held_out_psnr_db)

    @property
    def generalises(self) -> bool:
        """Whether held-out prompts agree with the ones searched on."""
        return self.checked and self.psnr_db - self.held_out_psnr_db < DISAGREE_DB

    def __str__(self) -> str:
        held = f"{self.held_out_psnr_db:.1f} dB held out" if self.checked else "not checked on held-out prompts"
        before = "" if math.isnan(self.before_psnr_db) else f"{self.before_psnr_db:.1f} dB before, "
        again = f", {self.remembered:.0%} of their full steps remembered" if round(self.remembered, 2) else ""
        kept = "; nothing better was found, the cache stays as it was" if self.kept else ""
        kept += f"; {self.learned} corrections learnt" if self.learned else ""
        return (
            f"{self.full:.3g} of {self.steps} steps full{self._chosen()}; "
            f"{self.psnr_db:.1f} dB on its prompts, {held}, {before}{self.start_psnr_db:.1f} dB at the start; "
            f"{counted(self.trials, 'trial')} in {self.seconds:.0f} s{again}{kept}{''.join(self._doubts())}"
        )

    def table(self) -> str:
        """The curve as a short table, and between which points it is steepest."""
        return curve_table(self.curve)

    def _doubts(self) -> list[str]:
        found = []
        if self.compared:
            found.append(f"; chosen again among {self.compared}, as held-out prompts disagreed")
        if self.checked and not self.generalises:
            found.append("; WARNING: held-out prompts disagree, give it more prompts")
        if self.interrupted:
            found.append("; WARNING: interrupted, this is the best so far")
        elif self.hurried:
            made = f"time for {counted(self.trials, 'trial')} only"
            found.append(f"; WARNING: {made}, give it more seconds or a quieter machine")
        if self.left_out:
            found.append(f"; WARNING: no time for {counted(self.left_out, 'prompt')}, left out")
        return found

    def _chosen(self) -> str:
        p = self.cache.policy
        own, forecast = p.schedule, p.forecast
        if not own.full_steps:
            return f" on average; {p.gate.bound if p.gate else p.site.bound}"
        segments = f", by segment {' '.join(f'{g:g}' for g in own.segments)}" if own.segments else ""
        gains = f"order {forecast.order} in {forecast.coordinate}, gains {forecast.gains[0]:g} / {forecast.gains[1]:g}"
        righted = ", corrected" if p.corrected else ""
        return f": {' '.join(map(str, own.full_steps))}; {gains}{segments}{righted}"
