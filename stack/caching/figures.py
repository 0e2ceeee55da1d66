"""What a cache reports of the last pipeline call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compat.rules.state import UNNAMED_BRANCHES
from ..runtime.step import FULL
from ..runtime.target import Target
from .constants import Constants
from .controller import CacheController
from .gate_policies import BudgetPolicy
from .guard import OutputGuard
from .policy import Policy


def figures_of(
    p: Policy, controller: CacheController, constants: Constants, guard: OutputGuard, target: Target
) -> Callable[[], dict[str, Any]]:
    """What gives the figures of a cache's last pipeline call, by name."""

    def report() -> dict[str, Any]:
        guard.settle(wait=True)
        kinds = [entry.kind for entry in target.journal.entries if entry.context.part == target.part]
        cached = len(kinds) - kinds.count(FULL)
        if kinds and not cached:
            target.journal.warn(_none_cached(p, controller.dropped, target))
        figures: dict[str, Any] = {"bytes": controller.bytes, "host_bytes": controller.host_bytes}
        figures |= {"table_bytes": constants.bytes, "cached_steps": cached, "dropped": controller.dropped}
        figures |= controller.figures | controller.estimates
        if isinstance(gate := p.gate, BudgetPolicy):
            fit = {"below_error": gate.below_error, "fitted_error": gate.measured_error}
            figures |= {"allowed_error": gate.threshold, **fit}
        return figures | {"rolled_back": controller.rolled_back, "recomputed": guard.recomputed + controller.refused}

    return report


def _none_cached(p: Policy, dropped: int, target: Target) -> str:
    """Why no step of the last pipeline call was cached."""
    contexts = target.contexts
    said = f"0 of {len(contexts)} steps cached"
    if not all(context.known for context in contexts):
        return f"{said}: it is not known which steps they were"
    if len(contexts) > 1 and len({context.request for context in contexts}) == len(contexts):
        return UNNAMED_BRANCHES.annotate(f"{said}: none of them went on from the one before")
    if contexts[-1].steps == 1:
        return f"{said}: a single step has none to go on from"
    if dropped:
        return f"{said}: what was kept had to be dropped"
    return f"{said}: {'the schedule runs all of them in full' if p.scheduled else 'the gate let none pass'}"
