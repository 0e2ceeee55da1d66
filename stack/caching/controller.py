"""Runs a cache on a model: decides each step by the schedule, keeps one predictor per guidance branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..clock import Clock, Tick
from ..compat.stamp import Stamp, stamp_of
from ..report import CACHED, FULL, Journal
from .predictor import SubspacePredictor
from .schedules import Schedule


@dataclass
class _Held:
    stamp: Stamp
    predictor: SubspacePredictor


@dataclass
class CacheController:
    """State of one cache on one model.

    Attributes:
        schedule_for: the schedule of a request with this many steps.
        weights_version: asked at every step; a change drops all state.
        dropped: states dropped within a request because their stamp no longer fitted.
    """

    clock: Clock
    journal: Journal
    schedule_for: Callable[[int], Schedule]
    new_predictor: Callable[[], SubspacePredictor]
    weights_version: Callable[[], int]
    dropped: int = 0
    _held: dict[str, _Held] = field(default_factory=dict)
    _tick: Tick | None = None

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(held.predictor.bytes for held in self._held.values())

    def reset(self) -> None:
        """Forget every request."""
        self._held.clear()

    def enter(self, tokens: torch.Tensor) -> bool:
        """A denoiser call reaches the blocks with these tokens (B, N, D); returns whether the blocks are skipped."""
        tick = self.clock.tick
        if tick is None:
            raise RuntimeError("the clock has not been advanced: the denoiser was called around its stack")
        self._tick = tick
        held = self._current(tick, stamp_of(tick, self.weights_version(), tokens))
        full = tick.step in self.schedule_for(tick.steps).full_steps(tick.steps)
        skip = not full and held.predictor.ready
        self.journal.mark(CACHED if skip else FULL)
        return skip

    def _current(self, tick: Tick, stamp: Stamp) -> _Held:
        held = self._held.get(tick.branch)
        if held is not None and held.stamp == stamp:
            return held
        if held is not None and held.stamp.request == stamp.request:
            self.dropped += 1
            self.journal.warn(f"cached state dropped at step {tick.step}: it was made under other conditions")
        if any(other.stamp.request != stamp.request for other in self._held.values()):
            self._held.clear()
        self._held[tick.branch] = _Held(stamp, self.new_predictor())
        return self._held[tick.branch]

    def store(self, feature: torch.Tensor) -> None:
        """A full step produced this feature (B, N, D)."""
        tick = self._now()
        predictor = self._held[tick.branch].predictor
        if predictor.ready:
            expected = predictor.predict(tick.time)
            error = (feature - expected).norm() / feature.norm().clamp_min(torch.finfo(feature.dtype).tiny)
            self.journal.mark(FULL, error)
        predictor.update(feature, tick.time)

    def predict(self) -> torch.Tensor:
        """The feature of the current cached step."""
        tick = self._now()
        return self._held[tick.branch].predictor.predict(tick.time)

    def _now(self) -> Tick:
        assert self._tick is not None, "enter() comes first"
        return self._tick
