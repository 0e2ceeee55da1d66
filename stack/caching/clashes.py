"""What a cache has to say of the stack below it: rounded, sparse, distilled, compiled. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch._inductor import list_mode_options

from ..bounds import lagrange_weights
from ..compat.calibrated_for import DECISIVE, MINOR, differences
from ..compat.rules.compilers import CUDA_GRAPHS, GATE_READS_DEVICE
from ..compat.rules.rounded_caches import (
    FITTED_ELSEWHERE,
    GATE_THRESHOLD,
    HIGH_ORDER,
    HIGHEST_ROUNDED_ORDER,
    LARGEST_NOISE_GAIN,
    NARROW_GAPS,
)
from ..compat.rules.sparse import SPARSE_UNDER_CACHE
from ..compat.rules.steps import DISTILLED_TRAJECTORY, EVEN_STEPS, FEWEST_STEPS, MOST_EVEN
from ..core.facts import Facts
from ..core.passes import Finding
from .policy import Policy
from .repairs import angle, can_correct

# What a fitted map, basis, ratio or polynomial depends on, beside the model.
FITTED_UNDER = ("adapters", "schedule", *MINOR)


def clashes(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """Findings on a cache that will run."""
    found = [*_compiler(p, facts, stage), *_fitted(p, facts, stage), *p.site.clashes(facts, stage)]
    if p.calibrated_for and not differences(p.calibrated_for, facts, (*DECISIVE, *MINOR)):
        return found  # finished pictures of this very stack have decided
    found += [*_gate(p, facts, stage), *_forecast(p, facts, stage), *_even(p, facts, stage)]
    if facts.attention_density < 1:
        what = f"full steps attend to {facts.attention_density:.0%}, and cached steps carry their error on"
        found.append(Finding.of(SPARSE_UNDER_CACHE, stage, what, note=True))
    if facts.distilled:
        what = f"{p.site.name!r} cached on the trajectory of {facts.distilled}, where it has not been calibrated"
        found.append(Finding.of(DISTILLED_TRAJECTORY, stage, what, note=True))
    return found


def _compiler(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    found = []
    if facts.machine.device == "cuda" and facts.compiled and records_graphs(facts.compiled):
        what, hint = f"blocks compiled in mode {facts.compiled!r}", "compile('max-autotune-no-cudagraphs')"
        found.append(Finding.of(CUDA_GRAPHS, stage, what, repair=hint, fatal=True))
    if p.gate and p.gate.reads_per_step and facts.machine.device != "cpu":
        what = f"gate {p.gate.name!r} waits for the device on {facts.steps} steps"
        found.append(Finding.of(GATE_READS_DEVICE, stage, what, note=True))
    return found


def records_graphs(mode: str) -> bool:
    """Whether a mode of `torch.compile` records CUDA graphs."""
    return bool(list_mode_options().get(mode, {}).get("triton.cudagraphs"))


def _fitted(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What was fitted, each under what."""
    fitted = {**p.site.fitted, "bases": None if angle(p, facts) is not None else p.split.found}
    under = {name: artifact.made_under for name, artifact in fitted.items() if artifact is not None}
    if p.gate and p.gate.fitted:
        under[f"{p.gate.name} gate"] = p.calibrated_for
    found = []
    for name, conditions in under.items():
        if changed := differences(conditions, facts, FITTED_UNDER):
            what = f"the {name} fitted under other conditions: {'; '.join(changed)}"
            found.append(Finding.of(FITTED_ELSEWHERE, stage, what, note=True))
    return found


def _gate(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    rounded = facts.weight_bits < 16 or facts.rounds_activations
    if not p.gate or p.gate.self_timed or not rounded:
        return []
    what = f"{p.gate.bound} of gate {p.gate.name!r} is not of this stack, whose weights have {facts.weight_bits}"
    return [Finding.of(GATE_THRESHOLD, stage, f"{what} bits and activations {facts.activation_bits}", note=True)]


def _forecast(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What noise does to differences, as long as nobody has measured it."""
    order = p.forecast.effective_order
    if not facts.rounds_activations or not order or p.noise:
        return []
    found = []
    gain = 0.0 if p.gate else noise_gain(p.full_steps(facts), facts.steps)
    if gain > LARGEST_NOISE_GAIN:
        what = f"this schedule's first differences gain {gain:.1f} times the noise of a step"
        found.append(Finding.of(NARROW_GAPS, stage, what, note=True))
    if order > HIGHEST_ROUNDED_ORDER:
        what = f"order {order} on {facts.activation_bits}-bit activations"
        found.append(Finding.of(HIGH_ORDER, stage, what, note=True))
    return found


def _even(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """Few full steps where published settings have them, though there are better places, and a corrector."""
    possible = p.scheduled and p.correctable and can_correct(facts) and facts.steps >= FEWEST_STEPS
    if p.schedule.full_steps or p.schedule.spread != "even" or not possible:
        return []
    full = len(p.full_steps(facts))
    if full > MOST_EVEN * facts.steps:
        return []
    what = f"{full} of {facts.steps} steps full, evenly spread: try spread='by-noise', corrected=True, or calibrate()"
    return [Finding.of(EVEN_STEPS, stage, what, note=True)]


def noise_gain(full_steps: Collection[int], steps: int) -> float:
    """Largest factor of a first-order forecast on the noise of its two full steps, 1 for plain reuse.

    sqrt(sum of w^2) for the weights w of both, largest over the cached steps of a request; independent noise.
    """
    full = sorted(full_steps)
    gains = [1.0]
    for step in set(range(steps)) - set(full):
        nodes = [node for node in full if node < step][-2:]
        gains.append(math.hypot(*lagrange_weights(nodes, step)))
    return max(gains)
