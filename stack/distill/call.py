"""Checks a pipeline call against a card: what contradicts the card is corrected, with a warning. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..compat.rules.adapters import CALL_GUIDANCE, CALL_SCHEDULE, CALL_STEPS
from ..core.errors import StackError
from ..core.passes import CallTransform, TransformedCall
from ..models.schedule import TRAINED
from .card import Card


def transformed_call(
    call_transforms: Sequence[CallTransform], given: dict[str, Any], strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """A pipeline call as every adapter's card wants it, and what had to be put right, which is also a Python warning.

    Raises:
        StackError: `strict`, and something had to be put right.
    """
    notes: list[str] = []
    for correct in call_transforms:
        call = correct(given)
        given, notes = call.arguments, notes + call.contradictions
    if notes and strict:
        raise StackError("; ".join(notes))
    for text in notes:
        warnings.warn(text, stacklevel=3)
    return given, notes


def corrected(card: Card, given: Mapping[str, Any], known: Collection[str]) -> TransformedCall:
    """A call that keeps to a card.

    Args:
        given: the caller's arguments, by name.
        known: names the pipeline's call takes.
    """
    call = TransformedCall(dict(given))
    if card.steps:
        _steps(card, call, known)
    _guidance(card, call, known)
    for name, value in card.call.items():
        if name in known:
            call.arguments.setdefault(name, value)
    return call


def _steps(card: Card, call: TransformedCall, known: Collection[str]) -> None:
    asked = call.arguments.get("num_inference_steps")
    if asked is not None and not card.least <= asked <= card.largest:
        call.contradict(CALL_STEPS, f"{asked} steps asked of {card.name}, {_range(card)}: {card.steps} are run")
        asked = card.steps
    count = asked or card.steps
    call.arguments["num_inference_steps"] = count
    sigmas = list(card.sigmas(count))
    for name, factor in (("sigmas", 1), ("timesteps", TRAINED)):
        if name not in known:
            continue
        wanted, own = [factor * s for s in sigmas], call.arguments.pop(name, None)
        if own is not None and not (_equal(own, wanted) if wanted else card.least <= len(own) <= card.largest):
            call.contradict(CALL_SCHEDULE, f"{name} asked of {card.name}, which has its own: the card's are run")
        elif own is not None and not wanted:
            call.arguments[name] = own
    # Not as timesteps: LTXPipeline refuses its own. The scheduler has them in any case.
    if sigmas and "sigmas" in known:
        call.arguments["sigmas"] = sigmas


def _range(card: Card) -> str:
    counts = f"{card.least} to {card.largest}" if card.least < card.largest else f"{card.steps}"
    return f"which is made for {counts} steps"


def _equal(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= 1e-6 * max(abs(y), 1e-6) for x, y in zip(a, b, strict=True))


def _guidance(card: Card, call: TransformedCall, known: Collection[str]) -> None:
    guidance, name = card.guidance, card.guidance.name
    asked = call.arguments.get(name)
    if asked is not None and asked > guidance.limit:
        del call.arguments[name]
        instead = "no guidance" if guidance.limit <= 1 else f"at most {guidance.limit:g}"
        call.contradict(CALL_GUIDANCE, f"{name}={asked:g} asked of {card.name}, made for {instead}: it is left out")
    if guidance.value is not None and name in known:
        call.arguments.setdefault(name, guidance.value)
