"""A cache in words, for `explain()`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..compat.horizon import most_saved
from ..compat.noise import rounding_floor
from ..compat.rules.rounded_caches import NOISE_IN_DIFFERENCES
from ..core.facts import Facts
from .amplification import amplification
from .cap import size_words
from .policy import Policy
from .repairs import always_running


def described(method: str, p: Policy, facts: Facts) -> list[str]:
    """Lines for `explain()`: when it runs in full, what it forecasts, where it stands, what it holds."""
    site, lines = p.site, p.site.lines(p, facts)
    if site.decides:
        return [method, *lines, size_words(p, facts)]
    corrects = ["full steps correct the error of the forecasts before them"] if p.corrected else []
    always = f", {site.front_blocks} front and {site.back_blocks} back blocks always run"
    running = always if site.front_blocks or site.back_blocks else ""
    return [
        f"{method}, {_when(p, facts)}",
        f"{_forecast_words(p)}; coordinate: {p.forecast.coordinate}",
        *lines,
        *corrects,
        *_amplified(p, facts),
        f"site: {site.words}{running}; {size_words(p, facts)}{noise_words(p, facts)}",
    ]


def _when(p: Policy, facts: Facts) -> str:
    if p.gate:
        return p.gate.words
    own, steps = p.schedule, facts.steps
    full = p.full_steps(facts)
    kind = spacing(full) if own.spread == "even" else f"placed by noise level: {' '.join(map(str, full))}"
    if own.full_steps:
        transferred = f"carried from the {own.steps} steps it was calibrated for"
        kind = "calibrated" if steps == own.steps else transferred
    most = most_saved(len(full), steps, always_running(p, facts))
    return f"{len(full)} of {steps} steps full ({kind}), at most {most:.2f}x"


def spacing(full: Sequence[int]) -> str:
    """How full steps lie: the first of them in a row, and how far apart the others are."""
    lead = next((i for i, (a, b) in enumerate(pairwise(full), 1) if b - a > 1), len(full))
    gaps = sorted({b - a for a, b in pairwise(full[lead - 1 :])})
    if not gaps:
        return f"the first {lead}" if lead > 1 else "the first only"
    apart = f"every {gaps[0]} steps" if len(gaps) == 1 else f"{gaps[0]} to {gaps[-1]} steps apart"
    return f"the first {lead}, then {apart}" if lead > 1 else apart


def _amplified(p: Policy, facts: Facts) -> list[str]:
    """What becomes of full steps' errors where a schedule decides and nothing is known of noise."""
    steps, coordinate = facts.steps, p.forecast.coordinate
    if p.gate or p.noise or not p.forecast.effective_order or coordinate not in ("step", "time"):
        return []
    xs = [float(step) if coordinate == "step" else 1 - step / steps for step in range(steps)]
    most = amplification(p.forecast, xs, p.full_steps(facts), lambda at: p.schedule.gain(at, steps))
    return [f"error: forecasts amplify errors of full steps at most {most:.1f} times (bound)"]


def _forecast_words(p: Policy) -> str:
    forecast = p.forecast
    if forecast.level:
        return f"principal part: running average (weight {forecast.level:g} on the older value); residual reused"
    if not forecast.effective_order:
        return "the last feature is reused"
    principal, residual = forecast.gains
    gains = f"principal part ({p.split.words}) with gain {principal:g}, residual with {residual:g}"
    return f"order {forecast.order} ({forecast.basis}); {gains}"


def noise_words(p: Policy, facts: Facts) -> str:
    """The noise that forecasts allow for, and beside it what rounding to these bits alone would leave."""
    if not p.noise:
        return ""
    floors = [error for _, error in p.noise]
    bits = rounding_floor(facts.activation_bits, facts.width) if facts.rounds_activations else 0.0
    least, most = f"{min(floors):.2%}", f"{max(floors):.2%}"
    text = f"differences shrunk for {least if least == most else f'{least} to {most}'} of rounding noise"
    if bits and abs(max(floors) - bits) > 0.1 * bits:  # else it is what these bits leave
        text += f", as measured; {facts.activation_bits}-bit activations alone would leave {bits:.2%}"
    return "; " + NOISE_IN_DIFFERENCES.annotate(text)
