"""Cards as a table, for the command line and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from .card import Card

COLUMNS = ("adapter", "for", "steps", "guidance", "licence", "verified")


def row(card: Card) -> tuple[str, ...]:
    """One card, in the order of `COLUMNS`."""
    steps = f"{card.least}-{card.largest}" if card.least < card.largest else str(card.steps)
    made_for = ", ".join(card.base[:1]) if card.weights else card.model
    verified = "yes" if card.verified else "no"
    return card.name, made_for, steps, card.guidance.words(), card.licence or "unknown", verified


def markdown(cards: Iterable[Card]) -> str:
    """A table of the cards."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(card) for card in cards)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
