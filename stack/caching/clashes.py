"""What a cache has to say of the stack below it: rounded, sparse, distilled, compiled. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch._inductor import list_mode_options

from ..attention.cost import ATTENTION_SHARE
from ..bounds import best_speedup, lagrange_weights
from ..compat.rules.compilers import CUDA_GRAPHS, GATE_READS_DEVICE
from ..compat.rules.rounded_caches import (
    FITTED_ELSEWHERE,
    GATE_THRESHOLD,
    HIGH_ORDER,
    HIGHEST_ORDER,
    LARGEST_NOISE_GAIN,
    NARROW_GAPS,
)
from ..compat.rules.sparse import ATTENTION_CACHED_AND_SPARSE, SPARSE_UNDER_CACHE
from ..compat.rules.steps import DISTILLED_TRAJECTORY, EVEN_STEPS, FEWEST_STEPS, MOST_EVEN
from ..core.facts import Facts
from ..core.passes import Finding
from .calibrated_for import DECISIVE, MINOR, differences
from .policy import Policy
from .repairs import angle, can_correct

# What a fitted map, basis, ratio or polynomial depends on, beside the model.
FITTED_UNDER = ("adapters", "schedule", *MINOR)
SELF_TIMED = ("budget",)  # gates whose threshold is an error that is measured in every request


def clashes(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """Findings on a cache that will run."""
    found = [*_compiler(p, facts, stage), *_fitted(p, facts, stage), *_attention(p, facts, stage)]
    if p.calibrated_for and not differences(p.calibrated_for, facts, (*DECISIVE, *MINOR)):
        return found  # finished pictures of this very stack have decided
    found += [*_gate(p, facts, stage), *_forecast(p, facts, stage), *_even(p, facts, stage)]
    if facts.attention_density < 1:
        what = f"full steps attend to {facts.attention_density:.0%}, and cached steps carry their error on"
        found.append(Finding.of(SPARSE_UNDER_CACHE, stage, what, note=True))
    if facts.distilled:
        what = f"{p.site!r} cached on the trajectory of {facts.distilled}, where it has not been calibrated"
        found.append(Finding.of(DISTILLED_TRAJECTORY, stage, what, note=True))
    return found


def _compiler(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    found = []
    if facts.machine.device == "cuda" and facts.compiled and records_graphs(facts.compiled):
        what, hint = f"blocks compiled in mode {facts.compiled!r}", "compile('max-autotune-no-cudagraphs')"
        found.append(Finding.of(CUDA_GRAPHS, stage, what, repair=hint, fatal=True))
    if p.gate and facts.machine.device != "cpu":
        what = f"gate {p.gate!r} waits for the device on {facts.steps} steps"
        found.append(Finding.of(GATE_READS_DEVICE, stage, what, note=True))
    return found


def records_graphs(mode: str) -> bool:
    """Whether a mode of `torch.compile` records CUDA graphs."""
    return bool(list_mode_options().get(mode, {}).get("triton.cudagraphs"))


def _fitted(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What was fitted, each under what."""
    fitted = {"maps": p.maps, "bases": None if angle(p, facts) is not None else p.bases}
    under = {name: each.made_under for name, each in fitted.items() if each is not None}
    if p.ratios or p.coefficients or p.error_scale != 1:
        under[f"{p.gate} gate"] = p.calibrated_for
    found = []
    for name, conditions in under.items():
        if changed := differences(conditions, facts, FITTED_UNDER):
            what = f"the {name} fitted under other conditions: {'; '.join(changed)}"
            found.append(Finding.of(FITTED_ELSEWHERE, stage, what, note=True))
    return found


def _attention(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    if p.site != "attention" or facts.attention_density == 1:
        return []
    left = ATTENTION_SHARE * facts.attention_density
    most = best_speedup([left / (1 - ATTENTION_SHARE + left)], [math.inf])
    what = f"sparse attention has left {facts.attention_density:.0%} of attention: caching it saves at most {most:.2f}x"
    return [Finding.of(ATTENTION_CACHED_AND_SPARSE, stage, what, note=True)]


def _gate(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    rounded = facts.weight_bits < 16 or facts.rounds_activations
    if not p.gate or p.gate in SELF_TIMED or not rounded:
        return []
    what = f"threshold {p.threshold:g} of gate {p.gate!r} is not of this stack, whose weights have {facts.weight_bits}"
    return [Finding.of(GATE_THRESHOLD, stage, f"{what} bits and activations {facts.activation_bits}", note=True)]


def _forecast(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What noise does to differences, as long as nobody has measured it."""
    order = p.forecast.effective_order
    if not facts.rounds_activations or not order or p.noise:
        return []
    found = []
    gain = 0.0 if p.gate else noise_gain(p.schedule(facts.steps).full_steps(facts.steps), facts.steps)
    if gain > LARGEST_NOISE_GAIN:
        what = f"this schedule's first differences gain {gain:.1f} times the noise of a step"
        found.append(Finding.of(NARROW_GAPS, stage, what, note=True))
    if order > HIGHEST_ORDER:
        what = f"order {order} on {facts.activation_bits}-bit activations"
        found.append(Finding.of(HIGH_ORDER, stage, what, note=True))
    return found


def _even(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """Few full steps of a flow where published settings have them, though there are better places, and a corrector."""
    possible = facts.flow and p.correctable and can_correct(facts) and facts.steps >= FEWEST_STEPS
    if p.full_steps or p.lean or not possible:
        return []
    full = len(p.schedule(facts.steps).full_steps(facts.steps))
    if full > MOST_EVEN * facts.steps:
        return []
    what = f"{full} of {facts.steps} steps full, evenly spread: try lean=2.0, corrected=True, or calibrate()"
    return [Finding.of(EVEN_STEPS, stage, what, note=True)]


def noise_gain(full_steps: Collection[int], steps: int) -> float:
    """The most that a first-order forecast multiplies the noise of its two full steps with, 1 for plain reuse.

    sqrt(sum of w^2) for the weights w of both, largest over the cached steps of a request; independent noise.
    """
    full = sorted(full_steps)
    gains = [1.0]
    for step in set(range(steps)) - set(full):
        nodes = [node for node in full if node < step][-2:]
        gains.append(math.hypot(*lagrange_weights(nodes, step)))
    return max(gains)
