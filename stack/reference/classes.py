"""The classes of `shapes-dit`: one shape in one colour, wherever it stands and whatever is behind it."""

from __future__ import annotations

import random
import re

from ..core.errors import StackError
from ..core.validate import shown
from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, plain_words

CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
NULL = len(CLASSES)  # the label of no class at all, in which the unguided branch is asked

_WORDS = re.compile(rf"^(?:an? )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})$")


def label_of(scene: Scene) -> int:
    """The class of a scene of one shape, 0 to 29."""
    (item,) = scene.items
    return CLASSES.index(item)


def class_words(scene: Scene) -> str:
    """The prompt that asks for a scene's class, such as "a red ring"; its place and background go unsaid."""
    ((colour, shape),) = scene.items
    return f"a {colour} {shape}"


def parse_class(prompt: str) -> Scene:
    """A scene of the class that "a red ring" or "red ring" asks for; its place and background do not matter.

    Raises:
        StackError: other words.
    """
    match = _WORDS.match(plain_words(prompt))
    if match is None:
        raise StackError(
            f"cannot read the prompt {shown(prompt)}: expected 'a COLOUR SHAPE' with colours {', '.join(COLOURS)} "
            f"and shapes {', '.join(SHAPES)}; this model draws one shape, and is not told where"
        )
    return Scene(((match[1], match[2]),), "center")


def sample_class(rng: random.Random) -> Scene:
    """Draw a scene of one shape: class, place and background are all equally likely."""
    return Scene((rng.choice(CLASSES),), rng.choice(list(PLACES)), rng.choice(list(BACKGROUNDS)))
