"""Feature caching: most steps skip the blocks and take a predicted feature instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ..compat import preexisting as carried
from ..compat.horizon import most_saved
from ..compat.noise import rounding_floor
from ..compat.rules.rounded_caches import NOISE_IN_DIFFERENCES
from ..compat.rules.state import UNNAMED_BRANCHES
from ..compile import compiled
from ..core.errors import choose
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding
from ..models.sampler import AffineStep, planned_steps
from ..runtime.call import Interceptor
from ..runtime.step_clock import FULL
from ..runtime.target import Target
from .bases import load_bases
from .candidate import Candidate
from .cap import check_cap, offload, size_words
from .checks import judged
from .constants import Constants
from .controller import CacheController
from .corrector import Corrector
from .fastcache import planning as fastcache
from .fastcache.maps import load_maps
from .guard import NoGradients, OutputGuard
from .placement import all_on_device, first_on_device
from .policy import PRESETS, Policy
from .repairs import always_running, can_correct
from .sample_size import SampleSize
from .schedules import Schedule
from .sites.all_blocks import AllBlocks
from .sites.block_range import BlockRange
from .sites.fastcache import FastCache
from .sites.per_module import PerBlock, PerModule
from .sites.relational import RelationalModules
from .sites.token_selector import TokenSelector
from .sites.tokenwise import Tokenwise
from .sites.whole_model import WholeModel
from .sites.x0_prediction import X0Prediction

FILES = {"maps": load_maps, "bases": load_bases}  # options that may be given as a file's path
OPTIONS = tuple(f.name for f in fields(Policy))


@dataclass(frozen=True, init=False)
class Cache:
    """A feature cache: a preset by name, any of its choices changed.

    Args:
        method: a row of `stack.caching.policy.PRESETS`: "svd" (SVD-Cache, arXiv 2601.07396), "taylorseer", ...
        options: any attribute of `stack.caching.policy.Policy`, instead of the preset's; `maps` and `bases` may
            be a file's path. `max_error=0.02` spends a relative error of the final sample instead of following a
            schedule (gate "budget"; `Stack.fit_gate` fits its estimate to finished samples).

    Raises:
        StackError: an unknown preset or option, or a value outside its range.
    """

    method: str
    policy: Policy
    stage: ClassVar[str] = "cache"

    def __init__(self, method: str = "svd", **options: Any):
        if method not in PRESETS:
            raise choose("cache", method, list(PRESETS))
        if "max_error" in options:
            options |= {"gate": "budget", "threshold": options.pop("max_error")}
        for name in options:
            if name not in OPTIONS:
                raise choose("option of the cache", name, OPTIONS)
        for name, load in FILES.items():
            if isinstance(options.get(name), (str, Path)):
                options[name] = load(options[name])
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "policy", replace(PRESETS[method], **options))

    def changed(self, **options: Any) -> Cache:
        """The same cache with other choices."""
        mine = {name: getattr(self.policy, name) for name in OPTIONS}
        return Cache(self.method, **{**mine, **options})

    def uncalibrated(self, **options: Any) -> Cache:
        """The same cache without a schedule of its own, and with other choices."""
        return self.changed(full_steps=(), full_at=(), segments=(), calibrated_for=(), **options)

    def within(self, max_error: float) -> Cache:
        """The same cache kept to this error of the final sample, or to its own where that is smaller."""
        own = self.policy.threshold if self.policy.gate == "budget" else max_error
        return self.uncalibrated(gate="budget", threshold=min(own, max_error))

    def calibrated(self, candidate: Candidate, steps: int, sigmas: Sequence[float] = ()) -> Cache:
        """The same cache with a candidate's schedule for these steps, at these noise levels, and its forecast."""
        at = tuple(sigmas[step] for step in candidate.full_steps) if sigmas else ()
        return self.changed(**vars(candidate), steps=steps, full_at=at)

    @property
    def measured(self) -> dict[str, Any]:
        """What calibration chose, as options for a recipe; what is as in the preset is left out."""
        fitted = ("steps", "full_at", "threshold", "error_scale", "below_error", "measured_error", "accept")
        chosen = (*(f.name for f in fields(Candidate)), *fitted, "calibrated_for")
        return {n: v for n in chosen if (v := getattr(self.policy, n)) != getattr(PRESETS[self.method], n)}

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The calibrated schedule; empty without one."""
        return self.policy.full_steps

    @property
    def steps(self) -> int:
        """The number of steps the schedule was calibrated for."""
        return self.policy.steps

    def schedule_for(self, steps: int, sigmas: Sequence[float] = ()) -> Schedule:
        """The schedule of a request with this many steps, at these noise levels if they are known."""
        return self.policy.schedule(steps, sigmas)

    def describe(self, facts: Facts) -> list[str]:
        p = self.policy
        if p.site == "fastcache":
            return [self.method, *fastcache.describe(p, facts)]
        lines = [f"{self.method}, {self._when(facts)}", f"{_forecast_words(p)}; coordinate: {p.coordinate}"]
        if p.cycle:
            kinds = p.kinds(facts.steps)
            lines += [f"{kinds.count('c')} steps conservative, {kinds.count('a')} aggressive: {kinds}", p.token_words]
        lines += ["full steps put right what forecasts left before them"] if p.corrected else []
        return [*lines, f"site: {_SITE_WORDS[p.site]}{_around(p)}; {size_words(p, facts)}{_noise_words(p, facts)}"]

    def _when(self, facts: Facts) -> str:
        p = self.policy
        if p.gate == "budget":
            fitted = f"estimate times {p.error_scale:.2g}, as fitted" if p.error_scale != 1 else "estimate not fitted"
            return f"steps cached while the final error is estimated within {p.threshold:g} ({fitted})"
        if p.gate:
            return f"steps decided by a {p.gate} gate, threshold {p.threshold:g}: saving depends on the picture"
        full = self.schedule_for(facts.steps).full_steps(facts.steps)
        kind = "dense near the data" if p.lean else f"every {p.interval} steps"
        kind = "calibrated" if p.full_steps and facts.steps == p.steps else kind
        if p.full_steps and facts.steps != p.steps:
            kind = f"carried from the {p.steps} steps it was calibrated for"
        most = most_saved(len(full), facts.steps, always_running(p, facts))
        return f"{len(full)} of {facts.steps} steps full ({kind}), at most {most:.2f}x"

    def check(self, facts: Facts) -> list[Finding]:
        p = self.policy
        if p.front + p.back >= facts.blocks:
            what = f"{p.front} front and {p.back} back blocks leave none of {facts.blocks} to cache"
            return [Finding(self.stage, what, fatal=True)]
        capped = check_cap(p, facts, self.stage)
        carries = [*carried.compiled(facts, self.stage), *carried.cached(facts, self.stage)]
        if any(finding.fatal for finding in (*capped, *carries)):
            return [*capped, *carries]
        return [*capped, *judged(self, facts)]

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def controller(self, target: Target) -> CacheController:
        """What decides and predicts for this cache on a model; it changes nothing there."""
        p, split = self.policy, offload(self.policy, target.now)
        return CacheController(
            clock=target.clock,
            journal=target.journal,
            schedule_for=self.schedule_for,
            new_predictor=lambda key, placement: p.new_predictor(placement, target.grid() if p.banded else (), key),
            conditions=target.conditions,
            new_gate=p.new_gate if p.gate else None,
            gain_at=p.gain,
            coordinate=p.coordinate,
            noise=p.noise,
            per_sample=p.site == "fastcache",
            place=first_on_device(split.features) if split else all_on_device,
        )

    def install_site(
        self, controller: CacheController, target: Target, install: Installer, *guards: Interceptor
    ) -> int:
        """Let this controller decide and predict where the policy says; returns the number of places.

        Args:
            guards: what sees outputs as the caller would get them.
        """
        site = _site(self.policy, controller, target)
        places = site.install(target.denoiser, target.wiring, install)
        # The first is the outermost. Every one of them sees what those behind it return.
        target.chain.add(
            install,
            *guards,
            *self.correctors(controller, target),  # correct what the site returned
            *site.interceptors,  # call the model, or answer in its place
        )
        return places

    def correctors(self, controller: CacheController, target: Target) -> tuple[Interceptor, ...]:
        """What lets full steps put right what this controller's forecasts left, if the policy says so."""
        return (Corrector(controller, _steps_of(target)),) if self.policy.corrected else ()

    def apply(self, target: Target, install: Installer) -> Applied:
        controller = self.controller(target)
        constants = Constants(target.clock, target.conditions)
        constants.install(target.denoiser, target.wiring, install)
        guard = OutputGuard(target.clock, target.journal, controller.empty)
        budget = self.policy.gate == "budget" and _clean_is_known(target)
        places = self.install_site(
            controller,
            target,
            install,
            NoGradients(target.journal),  # outermost: nothing that anybody keeps holds a graph
            guard,  # judges what the caller would get, and has it made again by all that follow
            *((SampleSize(controller, _steps_of(target)),) if budget else ()),  # reads outputs as they are corrected
        )
        install.on_rollback(controller.reset)

        def reset() -> None:
            controller.reset()
            constants.clear()
            guard.reset()

        noise = _noise_words(self.policy, target.now)
        return Applied(
            summary=f"{self.method} at {places} places, state kept per guidance branch{noise}",
            report=_reporter(self.policy, controller, constants, guard, target),
            reset=reset,
            details={"controller": controller},
        )


_SITE_WORDS = {
    "output": "last hidden state before the head",
    "residual": "what the blocks add",
    "blocks": "what each block adds to each stream",
    "modules": "every attention and MLP before its gate",
    "related": "every attention and MLP before its gate, moved as far as its input tells",
    "attention": "every attention before its gate; MLPs run",
    "clean": "the denoiser's estimate of the clean sample; nothing of the model runs",
    "denoiser": "what the whole denoiser adds to the latent",
    "tokens": "every attention and MLP before its gate, and the last hidden state before the head",
}


def _steps_of(target: Target) -> Callable[[], list[AffineStep]]:
    """The sampler's steps of the current request."""
    return planned_steps(target.pipe, lambda: target.clock.sigma_schedule)


def _clean_is_known(target: Target) -> bool:
    """Whether the clean sample can be read off the denoiser's output."""
    return target.pipe is not None and can_correct(target.now)


def _around(p: Policy) -> str:
    return f", {p.front} front and {p.back} back blocks always run" if p.front or p.back else ""


def _forecast_words(p: Policy) -> str:
    if p.level:
        return f"principal part is its running average (weight {p.level:g} on the older), residual reused"
    if not p.forecast.effective_order:
        return "the last feature is reused"
    part = f"energy {p.energy:g}" if p.split == "channels" else f"lowest {p.cutoff:.0%} of the token band"
    return (
        f"order {p.order} ({p.basis}); principal part ({part}) with gain {p.gains[0]:g}, residual with {p.gains[1]:g}"
    )


def _noise_words(p: Policy, facts: Facts) -> str:
    """The noise that is reckoned with, and beside it what the bits alone would leave."""
    if not p.noise:
        return ""
    floors = [error for _, error in p.noise]
    bits = rounding_floor(facts.activation_bits, facts.width) if facts.rounds_activations else 0.0
    text = f"differences shrunk to what stands out of {min(floors):.2%} to {max(floors):.2%} of noise"
    text += f", {facts.activation_bits} bits alone leave {bits:.2%}" if bits else ""
    return "; " + NOISE_IN_DIFFERENCES.annotate(text)


def _site(
    p: Policy, controller: CacheController, target: Target
) -> AllBlocks | BlockRange | PerBlock | PerModule | FastCache | Tokenwise | WholeModel | X0Prediction:
    if p.site == "fastcache":
        return FastCache(controller, p)
    compile = partial(compiled, mode=target.now.compiled)
    if p.site == "tokens":
        chooser = TokenSelector(controller, p, target.facts.head_dim, target.wiring.halves, target.grid)
        return Tokenwise(controller, p, chooser, compile)
    if p.site == "blocks":
        return PerBlock(controller)
    if p.site == "denoiser":
        return WholeModel(controller)
    if p.site == "clean":
        return X0Prediction(controller, _steps_of(target))
    if p.site == "related":
        return RelationalModules(controller, compile)
    if p.site in ("modules", "attention"):
        return PerModule(controller, ("attention",) if p.site == "attention" else ("attention", "mlp"), compile)
    residual = p.site == "residual"
    if not (p.gate or p.accept or p.front or p.back):
        return AllBlocks(controller, residual)
    return BlockRange(controller, p.front, p.back, residual, p.accepts if p.accept else None)


def _none_cached(target: Target) -> str:
    made, tick = len(target.journal.entries), target.clock.tick
    if made == 1 and tick is not None and tick.steps > 1:
        return UNNAMED_BRANCHES.annotate(f"0 of 1 steps cached: the last call went on from none of {tick.steps} steps")
    return f"0 of {made} steps cached: the schedule left none"


def _reporter(
    p: Policy, controller: CacheController, constants: Constants, guard: OutputGuard, target: Target
) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        guard.settle(wait=True)
        cached = sum(entry.kind != FULL for entry in target.journal.entries)
        if target.journal.entries and not cached:
            target.journal.warn(_none_cached(target))
        figures: dict[str, Any] = {"bytes": controller.bytes, "host_bytes": controller.host_bytes}
        figures |= {"table_bytes": constants.bytes, "cached_steps": cached, "dropped": controller.dropped}
        figures |= controller.figures | controller.estimates
        if p.gate == "budget":
            figures |= {"allowed_error": p.threshold, "below_error": p.below_error, "fitted_error": p.measured_error}
        return figures | {"rolled_back": controller.rolled_back, "recomputed": guard.recomputed + controller.refused}

    return report
