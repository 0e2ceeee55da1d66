"""What speaks against a cache on the stack below it, and what it is changed to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from ..compat import preexisting
from ..compat.calibrated_for import DECISIVE, MINOR, differences
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
    IN_AND_OUT,
    MORE_THAN_THE_LATENT,
    SAMPLER_NOT_PLAIN,
)
from ..core.facts import Facts
from ..core.passes import Finding
from ..core.progress import counted
from .clashes import clashes
from .gate_policies import BudgetPolicy
from .policy import Policy
from .repairs import always_running, angle, can_correct, for_few_steps, for_noise
from .schedules import Mask, same_share
from .splits import ChannelSplit

# Options that say when to run in full.
WHEN = ("interval", "warmup", "count", "spread", "gate", "threshold")
Judged = tuple[Finding, Policy | None]  # and the cache as the finding leaves it; None drops it, where it repairs


def judged(
    policy: Policy, facts: Facts, stage: str, method: str, asked: Mapping[str, Any] = MappingProxyType({})
) -> list[Judged]:
    """All findings about a cache that fits the model and its cap on memory; each repair builds on the one before.

    Args:
        method: the preset's name, for words.
        asked: options that the user has set, or that are not the preset's.
    """
    first = [
        *_split(policy, facts, stage),
        *policy.site.refuses(facts, stage),
        *_unfitted(policy, facts, stage, method, asked),
    ]
    found: list[Judged] = [(finding, None) for finding in first]
    if any(finding.fatal for finding in first):
        return found
    schedules = partial(_uncorrectable, asked), partial(_few_steps, asked), _elsewhere, _aligned
    for repair in (*schedules, _learnt_elsewhere, _turned, _noisy):
        judgement = repair(policy, facts, stage)
        if judgement is None:
            continue
        found.append(judgement)
        finding, repaired = judgement
        if finding.repair and repaired is None:
            return found
        policy = repaired or policy
    return [*found, *((finding, None) for finding in clashes(policy, facts, stage))]


def _uncorrectable(asked: Mapping[str, Any], p: Policy, facts: Facts, stage: str) -> Judged | None:
    """A corrector where x0 cannot be computed from the denoiser's output: a note where nobody has asked for it."""
    (into, out) = facts.latent
    if not p.corrected or can_correct(facts):
        return None
    plain, repair = replace(p, corrected=False), "full steps correct nothing"
    repair += "; calibrate again" if p.schedule.full_steps else ""
    note = "corrected" not in asked and not p.schedule.full_steps
    if facts.sampler:
        return Finding.of(SAMPLER_NOT_PLAIN, stage, facts.sampler, repair=repair, note=note), plain
    if "whole" in facts.lacks:
        what = f"a corrector reads the latent off the output: {facts.lacks['whole']}"
        return Finding(stage, what, repair=repair, note=note), plain
    what = f"a corrector reads the latent off the output: {IN_AND_OUT}, got {out} for {into}"
    return Finding.of(MORE_THAN_THE_LATENT, stage, what, repair=repair, note=note), plain


def _split(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What has to see all tokens of a block, where each process has a part of them."""
    if p.banded:
        return preexisting.split_tokens(facts, stage, "split='channels'")
    return preexisting.split_tokens(facts, stage, "cache('svd')") if p.site.all_tokens else []


def _asked_when(p: Policy, facts: Facts, asked: Mapping[str, Any]) -> list[str]:
    """The options that say when to run in full, where the user has set them for as many steps as these."""
    names = [name for name in WHEN if name in asked]
    if isinstance(p.gate, BudgetPolicy) and "gate" in asked:
        names = ["max_error"]
    return [*names, "full_steps"] if p.schedule.full_steps and p.schedule.steps == facts.steps else names


def _unfitted(p: Policy, facts: Facts, stage: str, method: str, asked: Mapping[str, Any]) -> list[Finding]:
    """What had to be measured first, or was measured on another model."""
    bases = p.split.found
    if bases is not None and (misfit := bases.misfit(facts)):
        what, hint = f"the bases were {misfit}", "stack.fit_bases(prompts)"
        return [Finding.of(FITTED_ELSEWHERE, stage, what, repair=hint, fatal=True)]
    if p.gate is None or (facts.steps < FEWEST_STEPS and not _asked_when(p, facts, asked)):
        return []
    return p.gate.unfitted(method, stage)


def _few_steps(asked: Mapping[str, Any], p: Policy, facts: Facts, stage: str) -> Judged | None:
    """Full steps of a few-step schedule are chosen by its noise levels, unless the user has said which run in full."""
    if facts.steps >= FEWEST_STEPS or (p.site.partial_depth and not p.gate):
        return None
    part = for_few_steps(p, facts)
    full, always = part.full_steps(facts), always_running(part, facts)
    most = most_saved(len(full), facts.steps, always)
    if when := _asked_when(p, facts, asked):
        what = (
            f"{' and '.join(when)} as asked on a schedule of {facts.steps} steps, where forecasts have little to go on"
        )
        return Finding.of(
            FEW_STEPS, stage, f"{what}; {len(full)} of them in full would be the default", note=True
        ), None
    if most <= 1:
        what = f"a schedule of {counted(facts.steps, 'step')} has none to cache"
        return Finding.of(FEW_STEPS, stage, what, repair="run without the cache"), None
    what = f"a schedule of {facts.steps} steps can save at most {most:.2f}x with this cache"
    front, back = part.site.front_blocks, part.site.back_blocks
    repair = f"{len(full)} of {facts.steps} steps run in full: {' '.join(map(str, full))}"
    repair += f"; the others run {front} front and {back} back blocks" if always else ""
    own = part.options()
    if unused := [name for name, value in asked.items() if own.get(name) != value]:
        repair += f"; not used: {', '.join(unused)}"
    return Finding.of(FEW_STEPS, stage, what, repair=repair), part


def _elsewhere(p: Policy, facts: Facts, stage: str) -> Judged | None:
    """A schedule that was calibrated under other conditions, or leaves nothing to cache."""
    if not p.scheduled:
        return None
    full, own = p.full_steps(facts), p.schedule
    if len(full) == facts.steps:
        return Finding(stage, f"0 of {facts.steps} steps would be cached", "interval 1", note=True), None
    if own.full_steps and (changed := differences(p.calibrated_for, facts, DECISIVE)):
        what = f"the schedule was calibrated for another stack: {'; '.join(changed)}"
        plain, where = p.uncalibrated.changed(count=len(full)), "full steps placed by noise level"
        if own.spread == "even":
            even, where = same_share(Mask(own.full_steps, own.steps), facts.steps), "evenly spread full steps"
            plain = p.uncalibrated.changed(interval=even.interval, warmup=even.warmup, count=0, spread="even")
        repair = f"{len(full)} {where}, the cache's own forecast; calibrate again"
        return Finding.of(CALIBRATED_ELSEWHERE, stage, what, repair=repair), plain
    if own.full_steps and facts.steps != own.steps:
        then, now = uniform_levels(range(own.steps), own.steps), uniform_levels(range(facts.steps), facts.steps)
        order = p.forecast.effective_order
        error = forecast_cost(full, now, order) / max(forecast_cost(own.full_steps, then, order), 1e-12)
        what = (
            f"the schedule was calibrated for {own.steps} steps, the plan has {facts.steps}: full steps kept at their "
            f"noise levels, error estimated at {error:.2f} of the calibrated one"
        )
        return Finding.of(CALIBRATED_FOR_OTHER_STEPS, stage, what, note=True), None
    if changed := differences(p.calibrated_for, facts, MINOR):
        what = f"calibrated under other precision or sparsity, schedule kept: {'; '.join(changed)}"
        return Finding.of(CALIBRATED_AT_OTHER_PRECISION, stage, what, note=True), None
    return None


def _learnt_elsewhere(p: Policy, facts: Facts, stage: str) -> Judged | None:
    """Corrections that were learnt on another stack, or for other full steps."""
    learned = p.learned
    if learned is None:
        return None
    changed = differences(learned.made_under, facts, (*DECISIVE, *MINOR))
    if not (p.corrected and p.scheduled):
        what = "learned corrections need a corrector and a schedule"
    elif misfit := learned.misfit(facts):
        what = f"the corrections were {misfit}"
    elif changed:
        what = f"the corrections were learnt on another stack: {'; '.join(changed)}"
    elif tuple(full := p.full_steps(facts)) != learned.full_steps:
        then, now = (" ".join(map(str, steps)) for steps in (learned.full_steps, full))
        what = f"the corrections were learnt for full steps {then}, the plan has {now}"
    else:
        return None
    return Finding.of(CALIBRATED_ELSEWHERE, stage, what, repair="plain forecasts; calibrate again"), replace(
        p, learned=None
    )


def _aligned(p: Policy, facts: Facts, stage: str) -> Judged | None:
    """An even schedule that forecasts across a change in how steps are computed."""
    if not facts.switches or not (p.scheduled and p.schedule.even) or facts.steps < FEWEST_STEPS:
        return None
    moved = p.changed(switches=facts.switches)
    before, after = (policy.full_steps(facts) for policy in (p, moved))
    if before == after:
        return None
    at = " and ".join(str(round(share * facts.steps)) for share in facts.switches)
    what = f"the way steps are computed changes at step {at}, and forecasts would be made across that"
    repair = f"full steps moved, {len(after)} as before: {' '.join(map(str, after))}"
    return Finding.of(SWITCH_UNDER_CACHE, stage, what, repair=repair), moved


def _turned(p: Policy, facts: Facts, stage: str) -> Judged | None:
    """Bases that were found under another precision."""
    if (sine := angle(p, facts)) is None or not isinstance(p.split, ChannelSplit):
        return None
    bound = f"sin(theta) at most {sine:.2g} by the noise and the spectral gap, {WIDEST_ANGLE:g} is carried"
    what = f"the bases were found under another precision: {bound}"
    if sine <= WIDEST_ANGLE or p.split.basis_life == "warm":
        return Finding.of(BASIS_TURNED, stage, what, note=True), None
    warm = replace(p, split=replace(p.split, basis_life="warm"))
    return Finding.of(BASIS_TURNED, stage, what, repair="refreshed on every full step"), warm


def _noisy(p: Policy, facts: Facts, stage: str) -> Judged | None:
    """Differences of features that are known to be noisy, or of activations that are rounded anew on every step."""
    if (quiet := for_noise(p, facts)) is None:
        return None
    order = p.forecast.effective_order
    floor = max(error for _, error in quiet.noise)
    source = "measured features" if p.noise else f"{facts.activation_bits}-bit activations"
    what = f"forecasts of order {order} from {source}: about {floor:.1%} is noise"
    repair = "differences taken over the real gaps, and shrunk by the share that is noise"
    repair += "" if p.noise else "; noise_floor(prompts) measures it"
    return Finding.of(NOISE_IN_DIFFERENCES, stage, what, repair=repair), quiet
