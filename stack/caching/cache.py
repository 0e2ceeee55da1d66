"""Feature caching: most steps skip the blocks and take a predicted feature instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from ..compat import preexisting
from ..core.errors import StackError, choose
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, Pass
from ..core.progress import counted
from ..core.validate import NotNegative, checked
from ..models.parallel import ranks_of
from ..runtime.call import Interceptor
from ..runtime.target import Target
from .aside import SKIPS, StepsAside
from .bases import load_bases
from .candidate import Candidate
from .cap import check_cap, offload
from .checks import judged
from .constants import Constants
from .contract import BeforeBlocks
from .controller import CacheController
from .corrector import Corrector
from .describe import described, noise_words
from .fastcache.maps import load_maps
from .figures import figures_of
from .fitted import Fitted
from .gate_policies import BudgetPolicy, DraftPolicy
from .guard import NoGradients, OutputGuard
from .learned import Corrections, load_learned
from .methods import PRESETS, unlike_published
from .placement import all_on_device, first_on_device
from .policy import IMPLIED, Policy

FILES = {"maps": load_maps, "bases": load_bases, "learned": load_learned}  # options that may be given as a file's path
# Options that calibration and `fit_gate` choose.
MEASURED = (
    *(f.name for f in fields(Candidate)),
    *("steps", "full_at", "threshold", "accept", "calibrated_for"),
    *("error_scale", "lead", "below_error", "measured_error"),
)


def _read(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a policy takes them: files read, `max_error` as the gate that it stands for."""
    made = dict(options)
    made |= {n: read(made[n]) for n, read in FILES.items() if isinstance(made.get(n), (str, Path))}
    if "max_error" in made:
        if also := [repr(name) for name in ("gate", "threshold") if name in made]:
            raise StackError(f"max_error is a gate of its own: expected it alone, got {also[0]} beside it")
        made |= {"gate": "budget", "threshold": checked(NotNegative, made.pop("max_error"), "cache.max_error")}
    return made


@dataclass(frozen=True, init=False)
class Cache:
    """A feature cache: a preset by name, any of its choices changed.

    Args:
        method: a row of `stack.caching.methods.PRESETS`: "svd" (SVD-Cache, arXiv 2601.07396), "taylorseer", ...
        options: any choice of `stack.caching.policy.Policy` and of its parts, instead of the preset's; `maps`,
            `bases` and `learned` may be a file's path. `max_error=0.02` limits the relative error of the final sample:
            each full step measures the forecasts and chooses the next one (gate "budget"; `Stack.fit_gate` fits the
            estimate to finished samples).

    Attributes:
        given: names of the options that the user has set, even if to the preset's values.

    Raises:
        StackError: an unknown preset or option, or a value outside its range.
    """

    method: str
    policy: Policy
    given: tuple[str, ...]
    stage: ClassVar[str] = "cache"

    def __init__(self, method: str = "svd", **options: Any):
        checked(str, method, "cache.method")
        if method not in PRESETS:
            raise choose("cache", method, list(PRESETS))
        object.__setattr__(self, "method", method)
        read = _read(options)
        object.__setattr__(self, "policy", PRESETS[method].changed(**read))
        object.__setattr__(self, "given", tuple(read))

    def having(self, policy: Policy) -> Cache:
        """The same cache with another policy."""
        made = Cache(self.method)
        object.__setattr__(made, "policy", policy)
        object.__setattr__(made, "given", self.given)
        return made

    def changed(self, **options: Any) -> Cache:
        """The same cache with other choices."""
        read = _read(options)
        made = self.having(self.policy.changed(**read))
        object.__setattr__(made, "given", tuple(dict.fromkeys((*self.given, *read))))
        return made

    def uncalibrated(self, **options: Any) -> Cache:
        """The same cache without a schedule or learned corrections of its own, and with other choices."""
        return self.having(self.policy.uncalibrated).changed(**options)

    def within(self, max_error: float) -> Cache:
        """The same cache kept to this error of the final sample, or to its own where that is smaller."""
        gate = self.policy.gate
        own = gate.threshold if isinstance(gate, BudgetPolicy) else max_error
        return self.uncalibrated(max_error=min(own, max_error))

    def calibrated(self, candidate: Candidate, steps: int, sigmas: Sequence[float] = ()) -> Cache:
        """The same cache with a candidate's schedule for these steps, at these noise levels, and its forecast."""
        at = tuple(sigmas[step] for step in candidate.full_steps) if sigmas else ()
        return self.changed(**candidate.options(self.policy), steps=steps, full_at=at)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal cache, those of the preset left out.

        Raises:
            StackError: it holds something fitted, which a recipe can only name the file of.
        """
        if fitted := self.fitted:
            what = ", ".join(fitted)
            raise StackError(
                f"a recipe cannot hold what was fitted ({what}): save it and name the file, or Stack.save()"
            )
        return {"method": self.method, **self._asked}

    @property
    def fitted(self) -> dict[str, Fitted]:
        """What was fitted for it, by the option that may name a file with it."""
        own = self.policy.options()
        return {name: own[name] for name in FILES if isinstance(own.get(name), Fitted)}

    def options_with(self, files: Mapping[str, str]) -> dict[str, Any]:
        """The same as `options`, what was fitted being in these files."""
        bare = self.having(self.policy.changed(**dict.fromkeys(self.fitted)))
        return {name: value for name, value in bare.options().items() if name not in files} | dict(files)

    @property
    def _asked(self) -> dict[str, Any]:
        """Options that are not the preset's, and those that the user has set."""
        own = self.policy.options()
        given = {name: own[name] for name in self.given if name in own}
        asked = given | self.policy.differing(PRESETS[self.method])
        for name in IMPLIED:
            rest = {n: v for n, v in asked.items() if n != name}
            if PRESETS[self.method].changed(**rest).options()[name] != own[name]:
                asked[name] = own[name]
            elif name not in given:
                asked = rest
        return asked

    @property
    def measured(self) -> dict[str, Any]:
        """What calibration chose, as options for a recipe; what is as in the preset is left out."""
        differing = self.policy.differing(PRESETS[self.method])
        return {name: differing[name] for name in MEASURED if name in differing}

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The calibrated schedule; empty without one."""
        return self.policy.schedule.full_steps

    def describe(self, facts: Facts) -> list[str]:
        unlike = unlike_published(self.method)
        return [*described(self.method, self.policy, facts), *([unlike] if unlike else [])]

    def check(self, facts: Facts) -> list[Finding]:
        p = self.policy
        missing = dict.fromkeys(name for name in p.site.wants(p) if name in facts.lacks)
        if missing:
            reasons = "; ".join(f"{name}: {facts.lacks[name]}" for name in missing)
            what = f"{self.method} needs what is not known of this {facts.family} model"
            return [Finding(self.stage, what, reasons, fatal=True)]
        front, back = p.site.front_blocks, p.site.back_blocks
        if front + back >= facts.blocks and "blocks" in p.site.needs:
            what = f"{front} front and {back} back blocks leave none of {facts.blocks} to cache"
            return [Finding(self.stage, what, fatal=True)]
        capped = check_cap(p, facts, self.stage)
        carries = [*preexisting.compiled(facts, self.stage), *preexisting.cached(facts, self.stage)]
        if any(finding.fatal for finding in (*capped, *carries)):
            return [*capped, *carries]
        return [
            *capped,
            *(self._found(*judgement) for judgement in judged(p, facts, self.stage, self.method, self._asked)),
        ]

    def _found(self, finding: Finding, policy: Policy | None) -> Finding:
        """A finding with the cache that it leaves."""
        return finding if policy is None else replace(finding, replacement=self.having(policy))

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def controller(self, target: Target) -> CacheController:
        """What decides and predicts for this cache on a model; it changes nothing there."""
        p, split, ranks = self.policy, offload(self.policy, target.now), ranks_of(target.denoiser)
        return CacheController(
            clock=target.clock,
            journal=target.journal,
            schedule_for=p.schedule_for,
            new_predictor=lambda key, place: p.new_predictor(place, target.grid() if p.banded else (), key, ranks),
            conditions=target.conditions,
            new_gate=p.new_gate if p.gate else None,
            gain_at=p.schedule.gain,
            coordinate=p.forecast.coordinate,
            noise=p.noise,
            per_sample=p.site.per_sample,
            place=first_on_device(split.features) if split else all_on_device,
            given=lambda: target.conditions.given,
            residuals=target.wiring.residuals,
            whole="rows" in target.wiring.lacks,
            ranks=ranks,
            # A gate may put two full steps next to each other, and so does a schedule that is moved onto the change.
            bridges=not (p.gate or p.schedule.switches),
            drafts=isinstance(p.gate, DraftPolicy) and bool(p.gate.accept),
        )

    def install_site(
        self,
        controller: CacheController,
        target: Target,
        install: Installer,
        *guards: Interceptor,
        learned: Corrections | None = None,
    ) -> int:
        """Let this controller decide and predict where the policy says; returns the number of places.

        Args:
            guards: what sees outputs as the caller would get them.
            learned: in place of the policy's.
        """
        site = self.policy.site.build(controller, target, self.policy)
        # The first is the outermost: it corrects what the site returned, which calls the model or answers instead.
        behind = [*self.correctors(controller, target, learned or self.policy.learned), *site.interceptors]
        skips = SKIPS & set(inspect.signature(type(target.denoiser).forward).parameters)
        if skips and not isinstance(site, BeforeBlocks):
            past = StepsAside(install, target.conditions, target.journal)
            behind, places = [past.passed(one) for one in behind], site.install(target.denoiser, target.wiring, past)
        else:
            places = site.install(target.denoiser, target.wiring, install)
        target.chain.add(install, *guards, *behind)
        return places

    def correctors(
        self, controller: CacheController, target: Target, learned: Corrections | None = None
    ) -> tuple[Interceptor, ...]:
        """What lets full steps put right what this controller's forecasts left, if the policy says so."""
        return (Corrector(controller, target.sampler(), learned=learned),) if self.policy.corrected else ()

    def apply(self, target: Target, install: Installer) -> Applied:
        controller = self.controller(target)
        constants = Constants(target.clock, target.conditions)
        constants.install(target.denoiser, target.wiring, install)
        guard = OutputGuard(target.clock, target.journal, controller.empty)
        places = self.install_site(
            controller,
            target,
            install,
            NoGradients(target.denoiser),  # outermost: nothing that anybody keeps holds a graph
            guard,  # judges what the caller would get, and has it made again by all that follow
        )
        install.on_rollback(controller.reset)

        def reset() -> None:
            controller.reset()
            constants.clear()
            guard.reset()

        noise = noise_words(self.policy, target.now)
        return Applied(
            summary=f"{self.method}: {counted(places, 'part')} of the model skipped on cached steps{noise}",
            report=figures_of(self.policy, controller, constants, guard, target),
            reset=reset,
            details={"controller": controller},
        )


def within(new: Pass, max_error: float) -> Pass:
    """A pass of a stack with an error budget: a cache fills it up."""
    return new.within(max_error) if max_error and isinstance(new, Cache) else new
