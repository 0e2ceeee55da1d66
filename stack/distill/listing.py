"""Cards as a table, for the command line and for the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..core.errors import StackError
from .card import Card
from .fits import unusable

COLUMNS = ("adapter", "class", "for", "steps", "schedule", "guidance", "licence", "verified", "usable")
NARROW = ("adapter", "class", "steps", "schedule", "guidance", "licence", "verified")
"""Those that a terminal has room for."""
_TABLE = re.compile(r"^\| adapter \| class \|.*\n(\|.*\n)*", re.MULTILINE)


def row(card: Card) -> tuple[str, ...]:
    """One card, in the order of `COLUMNS`."""
    steps = f"{card.least}-{card.largest}" if card.least < card.largest else str(card.steps)
    made_for = ", ".join(card.base[:1]) if card.weights else card.model
    verified, why_not = "yes" if card.verified else "no", unusable(card).removeprefix(f"{card.name} ")
    schedule, licence = card.schedule.kind, card.licence or "unknown"
    usable = f"no: {why_not}" if why_not else "yes"
    return card.name, _model(card), made_for, steps, schedule, card.guidance.words(), licence, verified, usable


def narrow_row(card: Card) -> tuple[str, ...]:
    """One card, in the order of `NARROW`."""
    entries = dict(zip(COLUMNS, row(card), strict=True))
    return tuple(entries[name] for name in NARROW)


def _model(card: Card) -> str:
    """The denoiser a card is for: its class, its sizes, and the pipelines where they matter."""
    named = " or ".join(card.classes) or card.family or card.pipeline or "any"
    sizes = [f"{name} {value}" for name, value in card.config.items()]
    sizes += [f"{card.denoisers} denoisers"] if card.denoisers > 1 else []
    sizes += [f"in {' or '.join(card.pipelines)}"] if card.pipelines else []
    return f"{named} ({', '.join(sizes)})" if sizes else named


def summary(cards: Sequence[Card]) -> str:
    """Those that cannot be used and why, a line each, and how many there are, can be used and are verified."""
    verified, reasons = sum(card.verified for card in cards), [why for card in cards if (why := unusable(card))]
    usable = len(cards) - len(reasons)
    counts = f"{len(cards)} adapters, {usable} usable, {verified} verified; the others hold recalled facts"
    return "\n".join([*(f"not usable: {why}" for why in reasons), counts])


def markdown(cards: Iterable[Card]) -> str:
    """A table of the cards."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(card) for card in cards)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rewritten(page: str, cards: Sequence[Card]) -> str:
    """A page with its table of cards written anew.

    Raises:
        StackError: it has no such table, or several.
    """
    if (count := len(_TABLE.findall(page))) != 1:
        raise StackError(f"expected a page with one table that begins with '| adapter | class |', found {count}")
    return _TABLE.sub(lambda _: markdown(cards) + "\n", page)
