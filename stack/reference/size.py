"""What the size of a picture asks for: the model trained for it where there is one, else arguments of the call."""

from __future__ import annotations

import re

from ..core.errors import StackError
from ..core.validate import shown
from .load import REFERENCES


def sides(size: str) -> tuple[int, int]:
    """Width and height of "WIDTHxHEIGHT" in pixels, or of "SIDE" for a square.

    Raises:
        StackError: it is neither.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", size)
    if found is None:
        raise StackError(
            f"--size must be WIDTHxHEIGHT in pixels, such as 1024x1024, or one side of a square, got {shown(size)}"
        )
    return int(found[1]), int(found[2] or found[1])


def at_size(model: str, size: str | None) -> tuple[str, dict[str, int]]:
    """The model to load for pictures of a size, and what every call of it has to say; None is the model's own size.

    Raises:
        StackError: see `sides`.
    """
    if size is None:
        return model, {}
    width, height = sides(size)
    trained = f"{model}-{width}"
    if trained in REFERENCES and width == height:
        return trained, {}
    return model, {"width": width, "height": height}
