"""Whether a card can be used with this diffusers, and whether it is for this model. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .card import CUSTOM, Card

if TYPE_CHECKING:
    from ..core.facts import Facts


def missing_scheduler(card: Card) -> str:
    """Which scheduler of its authors a card needs that diffusers lacks; "" for none."""
    if card.scheduler.sampler != CUSTOM:
        return ""
    return f"{card.name} needs {card.scheduler.name or 'a scheduler'} of its authors, not in diffusers"


def unusable(card: Card) -> str:
    """Why a card can be used on no model; "" where it can be."""
    if missing := missing_scheduler(card):
        return missing
    known = _diffusers_names()
    if lacks := [name for name in (*card.classes, *card.pipelines, card.pipeline) if name and name not in known]:
        return f"{card.name} is for {_either(lacks)}, which diffusers {metadata.version('diffusers')} lacks"
    return ""


@cache
def _diffusers_names() -> frozenset[str]:
    """What diffusers has by name. Its first file names all of it, and is read: importing it takes seconds."""
    found = find_spec("diffusers")
    assert found is not None and found.origin is not None
    return frozenset(re.findall(r'"(\w+)"', Path(found.origin).read_text("utf-8")))


def misfit(card: Card, facts: Facts) -> str:
    """Why a card is not for a model; "" where it is, and for a card that does not say what it is for.

    What is not known of a model is not held against it: the pipeline of a bare denoiser and whether it shares its
    steps, or the class in facts that are of no model.
    """
    if card.family not in ("", facts.family):
        return f"{card.name} is made for {card.family}: this model is {facts.family}"
    if not (card.classes or card.family):
        # A card that names a pipeline only is for that one.
        ours = card.pipeline in ("", facts.pipeline_class)
        return "" if ours else f"{card.name} is made for {card.pipeline}: this model is {facts.family}"
    return _class_misfit(card, facts)


def _class_misfit(card: Card, facts: Facts) -> str:
    made = f"{card.name} is made for"
    if not facts.denoiser_class:
        return ""
    if card.classes and facts.denoiser_class not in card.classes:
        return f"{made} {_either(card.classes)}: this denoiser is {facts.denoiser_class}"
    if card.pipelines and facts.pipeline_class and facts.pipeline_class not in card.pipelines:
        return f"{made} {_either(card.pipelines)}: this pipeline is {facts.pipeline_class}"
    for name, wanted in card.config.items():
        if facts.config.get(name) != wanted:
            return f"{made} a model with {name} {wanted}: this one has {facts.config.get(name)}"
    if facts.pipeline_class and card.classes and facts.denoisers != card.denoisers:
        return f"{made} a pipeline of {_count(card.denoisers)}: this one has {_count(facts.denoisers)}"
    return ""


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


def _count(denoisers: int) -> str:
    return f"{denoisers} denoiser{'s' if denoisers > 1 else ''}"
