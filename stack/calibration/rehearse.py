"""Trial runs of a cache that are cheaper than real ones: what an earlier trial computed is not computed again, and a
trial that has gone astray is given up."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ..caching.cache import Cache
from ..caching.candidate import Candidate
from ..caching.controller import CacheController, CacheSlot
from ..caching.policy import Policy
from ..caching.sites.block_range import BlockRange, BlockRangeSite
from ..core.errors import StackError
from ..core.installer import Installer
from ..core.passes import Applied
from ..runtime.step import StepContext
from ..runtime.target import Target
from .trajectory import Trajectory, sampled

ASTRAY = 2.0  # times as far from the uncached run as the best trial was at that step: 6 dB are not made up for later
HELD_RUNS = 3  # runs of full steps whose features are remembered


class Abandoned(Exception):
    """A trial was given up.

    Attributes:
        ratio: how many times as far astray as the best trial it was.
    """

    def __init__(self, ratio: float):
        super().__init__(f"{ratio:.1f} times as far from the uncached run as the best trial")
        self.ratio = ratio


def history(candidate: Candidate, step: int) -> tuple[object, ...]:
    """Everything that the feature of this full step depends on. Pure."""
    before = tuple(s for s in candidate.full_steps if s <= step)
    if len(before) == step + 1:  # no cached step yet: no forecast has been used
        return before
    segments = candidate.segments[: len(before) - 1] or (1.0,) * (len(before) - 1)
    return (replace(candidate, full_steps=before, segments=segments),)


@dataclass
class Rehearsals:
    """What trials share.

    Attributes:
        plain: the uncached run of the same requests.
        bar: how far the best trial was from it, before each step; empty before there is one.
        deviations: of the trial that runs or ran last.
        computed, remembered: full steps that ran, and that did not have to.
    """

    plain: Trajectory
    bar: list[float] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    computed: int = 0
    remembered: int = 0
    _features: OrderedDict[tuple[object, ...], dict[str, torch.Tensor]] = field(default_factory=OrderedDict)

    def begin(self, context: StepContext, tokens: torch.Tensor, patient: bool = False) -> None:
        """A step of a trial begins with these tokens (B, N, D); those of branches that are not written down are let by.

        Args:
            patient: the trial has a corrector, which later makes up for large errors on the way.

        Raises:
            Abandoned: in the second half, when the trial is too far off.
        """
        step = context.step
        if self.plain.contexts[step].branch != context.branch:
            return
        if step == 0:
            self.deviations = []
        off = float((sampled(tokens) - self.plain.inputs[step]).norm())
        self.deviations.append(off)
        if self.bar and not patient and step >= len(self.bar) // 2 and off > ASTRAY * self.bar[step] > 0:
            raise Abandoned(off / self.bar[step])

    def recall(self, key: tuple[object, ...]) -> dict[str, torch.Tensor] | None:
        """The features of a full step by stream, if it was computed lately."""
        if key not in self._features:
            return None
        self._features.move_to_end(key)
        self.remembered += 1
        return self._features[key]

    def remember(self, key: tuple[object, ...], stream: str, feature: torch.Tensor, runs_of: int) -> None:
        """Keep a feature, and forget the longest unused."""
        self.computed += key not in self._features
        self._features.setdefault(key, {})[stream] = feature
        while len(self._features) > HELD_RUNS * runs_of:
            self._features.popitem(last=False)


def rehearsable(policy: Policy) -> bool:
    """Whether its trials can be rehearsed: a range of blocks under a schedule."""
    return policy.gate is None and isinstance(policy.site, BlockRangeSite)


@dataclass(frozen=True)
class Rehearsal:
    """A trial of a candidate, in the cache's place. Its pictures are those of `cache`, bit for bit at site "output".

    Attributes:
        cache: the cache with the candidate's choices; a range of blocks under a schedule.
    """

    cache: Cache
    candidate: Candidate
    shared: Rehearsals

    def put_on(self, target: Target, install: Installer) -> Applied:
        """Stand where the cache would stand."""
        site = self.cache.policy.site
        if not rehearsable(self.cache.policy) or not isinstance(site, BlockRangeSite):
            raise StackError(f"{self.cache.method} cannot be rehearsed: expected a range of blocks under a schedule")
        controller = self.cache.controller(target)
        proxy = _Rehearsing(controller, self.candidate, self.shared)
        BlockRange(proxy, site.front, site.back, site.residual).install(target.denoiser, target.wiring, install)
        target.chain.add(install, *self.cache.correctors(controller, target))
        install.on_rollback(controller.reset)
        return Applied("rehearsing")


class _Rehearsing:
    """Answers a site as the controller does, from memory where it can."""

    probe = ""

    def __init__(self, controller: CacheController, candidate: Candidate, shared: Rehearsals):
        self.controller, self.candidate, self.shared = controller, candidate, shared
        self.clock, self.cached_work, self.ranks = controller.clock, controller.cached_work, controller.ranks
        self._known: dict[str, torch.Tensor] | None = None

    @property
    def slots(self) -> list[CacheSlot]:
        return self.controller.slots

    @property
    def _key(self) -> tuple[object, ...]:
        context = self.controller.now
        return (context.branch, *history(self.candidate, context.step))

    def begin(self, tokens: torch.Tensor) -> None:
        self.controller.begin(tokens)
        self.shared.begin(self.controller.now, tokens, patient=self.candidate.corrected)

    def decide(self, probe: torch.Tensor | None = None) -> list[bool]:
        skips = self.controller.decide(probe)
        self._known = None if any(skips) else self.shared.recall(self._key)
        # A full step that is remembered looks cached to the site: its blocks need not run.
        return skips if self._known is None else [True] * len(skips)

    def predict(self, key: str, slots: Sequence[CacheSlot]) -> torch.Tensor:
        if self._known is None:
            return self.controller.predict(key, slots)
        self.controller.store(key, self._known[key], slots, measure=False)
        return self._known[key]

    def store(self, key: str, feature: torch.Tensor, slots: Sequence[CacheSlot]) -> None:
        self.shared.remember(self._key, key, feature, len(self.candidate.full_steps))
        self.controller.store(key, feature, slots, measure=False)

    def reject(self, slots: Sequence[CacheSlot]) -> None:
        raise AssertionError("nothing is drafted here")


def decibels(ratio: float) -> float:
    """A ratio of norms in dB."""
    return 20 * math.log10(ratio)
