"""Options that older versions had. An old call or recipe gets one error that says what was removed and why."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import StackError

_MAPS = "block maps are made in every call: a map is 1.2 % of a sparse call, and checking an old one cost more"
REMOVED: dict[tuple[str, str], str] = {
    ("sparse_attn", "reuse_maps"): _MAPS,
    ("sparse_attn", "anchor_keep"): f"{_MAPS}; raise keep instead",
}


def refuse_removed(stage: str, options: Iterable[str]) -> None:
    """Check the names of the options given to a stage.

    Raises:
        StackError: one of them was removed.
    """
    for name in options:
        if why := REMOVED.get((stage, name)):
            raise StackError(f"{name}= of {stage} was removed: {why}")
