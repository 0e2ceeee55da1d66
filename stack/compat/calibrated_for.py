"""What a calibration holds for: the facts of the stack it was made on, kept beside the schedule it found. Pure."""

from __future__ import annotations

from ..core.facts import Facts

# Another trajectory: a schedule found on one says nothing about the other.
DECISIVE = ("family", "blocks", "width", "image_tokens", "adapters", "schedule")
# The same trajectory, computed less exactly. On shapes-flux a schedule found under int8 kept its quality without it
# (docs/benchmarks.md), so it is kept, and the plan has a note.
MINOR = ("weight_bits", "activation_bits", "attention_density", "attention_bits")


def conditions(facts: Facts) -> tuple[str, ...]:
    """The facts that matter, as "name=value", for a recipe."""
    known = vars(facts)
    return tuple(f"{name}={_word(known[name])}" for name in (*DECISIVE, *MINOR))


def differences(calibrated_for: tuple[str, ...], facts: Facts, names: tuple[str, ...]) -> list[str]:
    """In which of these facts a stack differs from the one calibrated on, in words; empty where nothing was noted."""
    now = dict(entry.split("=", 1) for entry in conditions(facts))
    then = dict(entry.partition("=")[::2] for entry in calibrated_for)
    return [f"{n} {then[n] or 'none'}, now {now[n] or 'none'}" for n in names if n in then and then[n] != now[n]]


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
