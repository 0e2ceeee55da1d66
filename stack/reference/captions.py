"""Prompts that reference models can read, where a comparison is given none."""

from __future__ import annotations

import itertools
import random

from .load import REFERENCES, Reference

DEFAULT = "shapes-flux"  # whose prompts any other model is given
KNOWN_ALL = 1000  # scenes drawn in a row without a new caption: there are no more


def captions(count: int, seed: int, model: str = DEFAULT) -> list[str]:
    """`count` different captions of a reference model: a fixed first one, then scenes drawn with the seed.

    A model that knows fewer, as one of classes does, has them repeated in the same order.
    """
    model_of = known(model)
    chosen, rng, misses = [model_of.example], random.Random(seed), 0
    while len(chosen) < count and misses < KNOWN_ALL:
        caption = model_of.prompt(model_of.sample(rng))
        misses = misses + 1 if caption in chosen else 0
        if not misses:
            chosen.append(caption)
    return list(itertools.islice(itertools.cycle(chosen), count))


def known(model: str) -> Reference:
    """The reference model of this name, or the one whose prompts any other model is given."""
    return REFERENCES.get(model, REFERENCES[DEFAULT])
