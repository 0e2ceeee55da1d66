"""What speaks against a cache on the stack below it, and what it is changed to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..compat.horizon import forecast_cost, most_saved, uniform_levels
from ..compat.rules.rounded_caches import (
    BASIS_TURNED,
    CALIBRATED_AT_OTHER_PRECISION,
    FITTED_ELSEWHERE,
    NOISE_IN_DIFFERENCES,
    WIDEST_ANGLE,
)
from ..compat.rules.sparse import SWITCH_UNDER_CACHE
from ..compat.rules.steps import (
    CALIBRATED_ELSEWHERE,
    CALIBRATED_FOR_OTHER_STEPS,
    FEW_STEPS,
    FEWEST_STEPS,
    LEARNED_VARIANCE,
    SAMPLER_NOT_PLAIN,
)
from ..core.facts import Facts
from ..core.passes import Finding
from .calibrated_for import DECISIVE, MINOR, differences
from .clashes import clashes
from .fastcache import planning as fastcache
from .repairs import always_running, angle, can_correct, for_few_steps, for_noise
from .schedules import Mask, same_share

if TYPE_CHECKING:
    from .cache import Cache


def judged(cache: Cache, facts: Facts) -> list[Finding]:
    """Everything there is to say of a cache that there is room for; repairs build on one another."""
    found = [*_impossible(cache, facts), *_unfitted(cache, facts)]
    if any(finding.fatal for finding in found):
        return found
    running: Cache | None = cache
    for repair in (_uncorrectable, _few_steps, _elsewhere, _aligned, _turned, _noisy):
        if running is not None and (finding := repair(running, facts)):
            found.append(finding)
            running = _after(running, finding)
    return [*found, *clashes(running.policy, facts, running.stage)] if running is not None else found


def _after(cache: Cache, finding: Finding) -> Cache | None:
    """The cache as a finding leaves it; None where it is dropped."""
    return cast("Cache | None", finding.replacement) if finding.repair else cache


def _impossible(cache: Cache, facts: Facts) -> list[Finding]:
    """Sites that this model or its sampler cannot have."""
    p, stage = cache.policy, cache.stage
    if p.site == "fastcache":
        return fastcache.check(p, facts, stage)
    if p.site == "clean" and facts.sampler:
        return [Finding.of(SAMPLER_NOT_PLAIN, stage, facts.sampler, fatal=True)]
    if p.site in ("denoiser", "clean") and facts.latent[0] != facts.latent[1]:
        into, out = facts.latent
        what = f"site {p.site!r} adds to the latent: expected as many numbers out as in, got {out} for {into}"
        return [Finding.of(LEARNED_VARIANCE, stage, what, repair="site='output'", fatal=True)]
    return []


def _uncorrectable(cache: Cache, facts: Facts) -> Finding | None:
    """A corrector where the clean sample cannot be read off the denoiser's output."""
    (into, out) = facts.latent
    if not cache.policy.corrected or can_correct(facts):
        return None
    plain, repair = cache.changed(corrected=False), "full steps correct nothing; calibrate again"
    if facts.sampler:
        return Finding.of(SAMPLER_NOT_PLAIN, cache.stage, facts.sampler, repair=repair, replacement=plain)
    what = f"a corrector reads the latent off the output: expected as many numbers out as in, got {out} for {into}"
    return Finding.of(LEARNED_VARIANCE, cache.stage, what, repair=repair, replacement=plain)


def _unfitted(cache: Cache, facts: Facts) -> list[Finding]:
    """What had to be measured first, or was measured on another model."""
    p, stage = cache.policy, cache.stage
    if p.bases is not None and (misfit := p.bases.misfit(facts)):
        what, hint = f"the bases were {misfit}", "stack.fit_bases(prompts)"
        return [Finding.of(FITTED_ELSEWHERE, stage, what, repair=hint, fatal=True)]
    if facts.steps < FEWEST_STEPS:
        return []
    if p.gate == "magnitude" and not p.ratios:
        what = f"{cache.method} needs the ratios of a measuring run: call fit_gate(prompts) first"
        return [Finding(stage, what, fatal=True)]
    if p.gate == "polynomial" and not p.coefficients:
        what = f"{cache.method} has no measured polynomial"
        return [Finding(stage, what, "the bare change is summed; call fit_gate(prompts) for it", note=True)]
    if p.gate == "budget" and p.error_scale == 1:
        what = "the error estimate has not been fitted to finished samples"
        return [Finding(stage, what, "fit_gate(prompts) does it", note=True)]
    return []


def _few_steps(cache: Cache, facts: Facts) -> Finding | None:
    """Whole steps are not forecast on a few-step schedule."""
    if facts.steps >= FEWEST_STEPS or (cache.policy.site == "residual" and not cache.policy.gate):
        return None
    part = cache.changed(**for_few_steps(cache.policy, facts))
    full, always = len(part.schedule_for(facts.steps).full_steps(facts.steps)), always_running(part.policy, facts)
    most = most_saved(full, facts.steps, always)
    if most <= 1:
        what = f"a schedule of {facts.steps} steps has none to cache"
        return Finding.of(FEW_STEPS, cache.stage, what, repair="run without the cache")
    what = f"a schedule of {facts.steps} steps can save at most {most:.2f}x with this cache"
    front, back = part.policy.front, part.policy.back
    repair = f"{facts.steps - full} of {facts.steps} steps run {front} front and {back} back blocks"
    return Finding.of(FEW_STEPS, cache.stage, what, repair=repair, replacement=part)


def _elsewhere(cache: Cache, facts: Facts) -> Finding | None:
    """A schedule that was calibrated under other conditions, or leaves nothing to cache."""
    p, stage = cache.policy, cache.stage
    if p.gate or p.site == "fastcache":
        return None
    full = sorted(cache.schedule_for(facts.steps).full_steps(facts.steps))
    if len(full) == facts.steps:
        return Finding(stage, f"0 of {facts.steps} steps would be cached", "interval 1", note=True)
    if p.full_steps and (changed := differences(p.calibrated_for, facts, DECISIVE)):
        what = f"the schedule was calibrated for another stack: {'; '.join(changed)}"
        where = "full steps dense near the data" if p.lean else "evenly spread full steps"
        repair = f"{len(full)} {where}, the cache's own forecast; calibrate again"
        even = same_share(Mask(p.full_steps, p.steps), facts.steps)
        plain = cache.uncalibrated(interval=even.interval, warmup=even.warmup)
        return Finding.of(CALIBRATED_ELSEWHERE, stage, what, repair=repair, replacement=plain)
    if p.full_steps and facts.steps != p.steps:
        then, now = uniform_levels(range(p.steps), p.steps), uniform_levels(range(facts.steps), facts.steps)
        order = p.forecast.effective_order
        error = forecast_cost(full, now, order) / max(forecast_cost(p.full_steps, then, order), 1e-12)
        what = (
            f"the schedule was calibrated for {p.steps} steps, the plan has {facts.steps}: full steps kept at their "
            f"noise levels, error estimated at {error:.2f} of the calibrated one"
        )
        return Finding.of(CALIBRATED_FOR_OTHER_STEPS, stage, what, note=True)
    if changed := differences(p.calibrated_for, facts, MINOR):
        what = f"calibrated under other precision or sparsity, schedule kept: {'; '.join(changed)}"
        return Finding.of(CALIBRATED_AT_OTHER_PRECISION, stage, what, note=True)
    return None


def _aligned(cache: Cache, facts: Facts) -> Finding | None:
    """An even schedule that forecasts across a change in how steps are computed."""
    p = cache.policy
    even = not (p.gate or p.full_steps or p.switches or p.lean) and p.site != "fastcache"
    if not facts.switches or not even or facts.steps < FEWEST_STEPS:
        return None
    moved = cache.changed(switches=facts.switches)
    before, after = (sorted(each.schedule_for(facts.steps).full_steps(facts.steps)) for each in (cache, moved))
    if before == after:
        return None
    at = " and ".join(str(round(share * facts.steps)) for share in facts.switches)
    what = f"the way steps are computed changes at step {at}, and forecasts would be made across that"
    repair = f"full steps moved, {len(after)} as before: {' '.join(map(str, after))}"
    return Finding.of(SWITCH_UNDER_CACHE, cache.stage, what, repair=repair, replacement=moved)


def _turned(cache: Cache, facts: Facts) -> Finding | None:
    """Bases that were found under another precision."""
    if (sine := angle(cache.policy, facts)) is None:
        return None
    told = f"sin(theta) at most {sine:.2g} by the noise and the spectral gap, {WIDEST_ANGLE:g} is carried"
    what = f"the bases were found under another precision: {told}"
    if sine <= WIDEST_ANGLE or cache.policy.basis_life == "warm":
        return Finding.of(BASIS_TURNED, cache.stage, what, note=True)
    warm = cache.changed(basis_life="warm")
    return Finding.of(BASIS_TURNED, cache.stage, what, repair="refreshed on every full step", replacement=warm)


def _noisy(cache: Cache, facts: Facts) -> Finding | None:
    """Differences of features that are known to be noisy, or of activations that are rounded anew on every step."""
    if not (changes := for_noise(cache.policy, facts)):
        return None
    order, known = cache.policy.forecast.effective_order, cache.policy.noise
    floor = max(error for _, error in known or changes["noise"])
    source = "measured features" if known else f"{facts.activation_bits}-bit activations"
    what = f"forecasts of order {order} from {source}: about {floor:.1%} is noise"
    repair = "differences over real gaps in time, shrunk to what stands out of it"
    repair += "" if known else "; noise_floor(prompts) measures it"
    return Finding.of(NOISE_IN_DIFFERENCES, cache.stage, what, repair=repair, replacement=cache.changed(**changes))
