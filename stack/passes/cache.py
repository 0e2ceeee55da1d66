"""Feature caching: most steps skip the blocks and take a predicted feature instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..caching.controller import CacheController
from ..caching.predictor import Gains, SubspacePredictor
from ..caching.schedules import Interval, Mask, Schedule, same_share
from ..caching.sites import WholeStack
from ..errors import StackError, choose
from ..facts import Facts
from ..install import Installer
from ..report import CACHED
from .base import Applied, Finding, Target

FEWEST_STEPS = 12  # below this an interval schedule has no history to extrapolate from (methods 6.5, rule 5)


@dataclass(frozen=True)
class Cache:
    """A feature cache: a schedule, a predictor, a site.

    `svd` is SVD-Cache (arXiv 2601.07396): the feature is split by its principal subspace; the principal part is
    predicted, the residual reused.

    Attributes:
        method: name of the preset; "svd".
        interval, warmup: full for `warmup` steps, then every `interval`-th; used while there is no `full_steps`.
        full_steps, steps: a calibrated schedule, and the number of steps it was calibrated for.
        gains: (principal, residual): 0 reuses, 1 extrapolates. (1, 0) is SVD-Cache, (0, 0) plain reuse.
        energy: share of the feature's energy in the principal subspace.
        beta: weight of the previous velocity in the EMA of velocities; 0 takes the newest alone.
    """

    method: str = "svd"
    interval: int = 7
    warmup: int = 3
    full_steps: tuple[int, ...] = ()
    steps: int = 0
    gains: tuple[float, float] = (1.0, 0.0)
    energy: float = 0.85
    beta: float = 0.0
    stage: ClassVar[str] = "cache"

    def __post_init__(self) -> None:
        if self.method != "svd":
            raise choose("cache", self.method, ["svd"])
        if not 0 < self.energy <= 1:
            raise StackError(f"energy must be in (0, 1], got {self.energy}")
        if not 0 <= self.beta < 1:
            raise StackError(f"beta must be in [0, 1), got {self.beta}: it is the weight of the older velocity")
        if len(self.gains) != 2:
            raise StackError(f"gains must be (principal, residual), got {self.gains}")
        Gains(*self.gains)
        self.schedule_for(self.steps or 50)

    def schedule_for(self, steps: int) -> Schedule:
        """The calibrated mask where it fits, an interval schedule of the same share of full steps where not."""
        if not self.full_steps:
            return Interval(self.interval, self.warmup)
        mask = Mask(tuple(self.full_steps), self.steps)
        return mask if steps == self.steps else same_share(mask, steps)

    def calibrated(self, full_steps: tuple[int, ...], steps: int, gains: tuple[float, float]) -> Cache:
        """The same cache with a measured schedule and measured gains."""
        return replace(self, full_steps=tuple(sorted(full_steps)), steps=steps, gains=gains)

    def describe(self, facts: Facts) -> list[str]:
        full = self.schedule_for(facts.steps).full_steps(facts.steps)
        kind = "calibrated" if self.full_steps and facts.steps == self.steps else f"every {self.interval} steps"
        if self.full_steps and facts.steps != self.steps:
            kind = f"same share as the one calibrated for {self.steps} steps"
        element = 4 if facts.dtype == "float32" else 2
        # The feature, its direction, and with an EMA the velocity, for one image and one guidance branch.
        tensors = 3 if self.beta else 2
        state = tensors * facts.image_tokens * facts.width * element
        size = f"{state / 1e6:.1f} MB of state per image and guidance branch" if state else "state size unknown"
        return [
            f"{self.method}, {len(full)} of {facts.steps} steps full ({kind}), at most {facts.steps / len(full):.2f}x",
            f"principal part (energy {self.energy:g}) follows its velocity with gain {self.gains[0]:g}, "
            f"residual with {self.gains[1]:g}; coordinate: unshifted time",
            f"site: last hidden state before the head; {size}",
        ]

    def check(self, facts: Facts) -> list[Finding]:
        full = len(self.schedule_for(facts.steps).full_steps(facts.steps))
        if facts.steps < FEWEST_STEPS:
            why = f"{facts.steps} steps leave no history to extrapolate from"
            what = f"a few-step schedule can save at most {facts.steps / full:.2f}x with this cache"
            return [Finding(self.stage, what, why, repair="run without the cache")]
        if full == facts.steps:
            return [Finding(self.stage, f"0 of {facts.steps} steps would be cached", "interval 1", note=True)]
        if self.full_steps and facts.steps != self.steps:
            what = f"the schedule was calibrated for {self.steps} steps, the plan has {facts.steps}"
            return [Finding(self.stage, what, "uniform schedule of the same share used; calibrate again", note=True)]
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def apply(self, target: Target, install: Installer) -> Applied:
        gains = Gains(*self.gains)
        controller = CacheController(
            clock=target.clock,
            journal=target.journal,
            schedule_for=self.schedule_for,
            new_predictor=lambda: SubspacePredictor(self.energy, gains, self.beta),
            weights_version=target.weights_version,
        )
        site = WholeStack(controller.enter, controller.store, controller.predict)
        blocks = site.install(target.denoiser, target.wiring, install)
        install.on_rollback(controller.reset)
        return Applied(
            summary=f"{self.method} before {blocks} blocks, state kept per guidance branch",
            report=_reporter(controller, target),
            reset=controller.reset,
            details={"controller": controller},
        )


def _reporter(controller: CacheController, target: Target) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        cached = sum(entry.kind == CACHED for entry in target.journal.entries)
        if target.journal.entries and not cached:
            target.journal.warn(f"0 of {len(target.journal.entries)} steps cached: the schedule left none")
        return {"bytes": controller.bytes, "cached_steps": cached, "dropped": controller.dropped}

    return report
