"""What `prompts` may be, for every function and command that draws: texts, a file of them, or a number of captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import annotated_types as limits

from ..core.errors import StackError
from ..core.files import read_text
from ..core.validate import checked, prompts_of, shown, some_prompts

MOST_PROMPTS, LONGEST_PROMPT = 1000, 10_000
DRAWN_WITH = 1000  # seed of the captions that settings are searched on: not what `compare` draws with by default
Prompts = int | str | Path | Sequence[Any]
"""How many captions of a reference model; or a text, texts, or the path of a file with one on each line."""
_Number = Annotated[int, limits.Ge(1), limits.Le(MOST_PROMPTS)]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one per line; empty lines are left out.

    Raises:
        StackError: no such file, no text, or more or longer prompts than a file may have.
    """
    lines = read_text(path, f"cannot read prompts from {path}").splitlines()
    found = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(found, 1):
        if len(line) > LONGEST_PROMPT or not line.isprintable():
            expected = f"expected printable text of at most {LONGEST_PROMPT} letters"
            raise StackError(f"{path}: prompt {number}: {expected}, got {shown(line)}")
    if len(found) > MOST_PROMPTS:
        raise StackError(f"{path}: expected at most {MOST_PROMPTS} prompts, got {len(found)}")
    return found


def texts_from(prompts: str | Path | Sequence[Any]) -> list[Any]:
    """Prompts as they are given, or the lines of the file that a `Path` names.

    Raises:
        StackError: no such file, no prompts, or the name of a file as a text, which would be drawn.
    """
    if isinstance(prompts, Path):
        return some_prompts(read_prompts(prompts))
    if isinstance(prompts, str) and os.path.isfile(prompts):
        raise StackError(
            f"prompts: {shown(prompts)} is a file: expected its Path for its lines, or a list for this text"
        )
    return some_prompts(prompts_of(prompts))


def drawn_prompts(pipe: Any, prompts: Prompts, seed: int = 0, model: str = "") -> list[Any]:
    """The prompts to draw; a number is as many captions, drawn with the seed.

    Args:
        model: whose captions they are; by default those of the pipeline's reference model, or of `DEFAULT` for any
            other pipeline.

    Raises:
        StackError: see `texts_from`; or a number below 1 or above `MOST_PROMPTS`.
    """
    if not isinstance(prompts, int):
        return texts_from(prompts)
    from .captions import DEFAULT, captions
    from .load import REFERENCES, name_of

    count = checked(_Number, prompts, "prompts")
    return captions(count, seed, model if model in REFERENCES else name_of(pipe) or DEFAULT)


def searched_prompts(pipe: Any, prompts: Prompts) -> list[Any]:
    """The prompts to search settings on; a number is as many captions of the reference model.

    Raises:
        StackError: see `drawn_prompts`; or a number for a pipeline of no reference model.
    """
    if not isinstance(prompts, int):
        return texts_from(prompts)
    from .load import name_of

    return searched_captions(name_of(pipe), checked(_Number, prompts, "prompts"), type(pipe).__name__)


def searched_captions(model: str | None, count: int, shown_as: str = "") -> list[str]:
    """Captions of a reference model, but for the first, which is everywhere.

    Args:
        shown_as: the model in the error; by default its name.

    Raises:
        StackError: no reference model.
    """
    from .captions import captions
    from .load import REFERENCES

    if model not in REFERENCES:
        raise StackError(f"no prompts are known for {shown_as or model}: expected texts, or a file of one on each line")
    return captions(count + 1, seed=DRAWN_WITH, model=model)[1:]
