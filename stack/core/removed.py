"""Options that older versions had. An old call or recipe gets one error that says what was removed and why."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import StackError

_MAPS = "block maps are made in every call: a map is 1.2 % of a sparse call, and checking an old one cost more"
_MIX = (
    "error feedback alone gains 10.0 dB over nf4 in the same bytes, a mix of schemes beside it 0.0; "
    "use quantize('nf4', feedback=True) and fit_rounding(prompts)"
)
REMOVED: dict[tuple[str, str], str] = {
    ("quantize", "max_error"): _MIX,
    ("quantize", "max_bytes"): _MIX,
    ("sparse_attn", "reuse_maps"): _MAPS,
    ("sparse_attn", "anchor_keep"): f"{_MAPS}; raise keep instead",
}


def removed(stage: str) -> list[str]:
    """Names of the options that a stage once had."""
    return [name for known, name in REMOVED if known == stage]


def refuse_removed(stage: str, options: Iterable[str]) -> None:
    """Check the names of the options given to a stage.

    Raises:
        StackError: one of them was removed.
    """
    for name in options:
        if why := REMOVED.get((stage, name)):
            raise StackError(f"{name}= of {stage} was removed: {why}")
