"""A pipeline call's arguments by name, as the pipeline's own signature takes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from numbers import Integral
from typing import Any

from ..core.errors import StackError, nearest
from ..core.validate import shown

STEPS = "num_inference_steps"
PROMPT = "prompt"
SIDES, FRAMES = ("width", "height"), ("num_frames", "video_length")


@dataclass(frozen=True)
class CallParameters:
    """What a pipeline's call takes.

    Attributes:
        positional: names that may be given by place, in order.
        named: names that may be given by name only.
        any_name: whether names beyond these are handed on.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...]
    any_name: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the positional ones first and in order."""
        return (*self.positional, *self.named)

    @classmethod
    def of(cls, pipe: Any) -> CallParameters:
        """Those of a pipeline. A call that hands on what it does not name takes what its parent's takes, too."""
        positional: list[str] = []
        named: list[str] = []
        any_name = False
        for kind in type(pipe).__mro__:
            if "__call__" not in vars(kind):
                continue
            parameters = list(inspect.signature(vars(kind)["__call__"]).parameters.values())[1:]
            positional += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][len(positional) :]
            named += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            any_name = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
            if not any_name:
                break
        return cls(tuple(positional), tuple(n for n in dict.fromkeys(named) if n not in positional), any_name)

    @property
    def takes_prompts(self) -> str:
        """The argument that prompts go to: `prompt`, or the first where there is none (`class_labels` of DiT)."""
        return PROMPT if PROMPT in self.names else self.positional[0]


def sides_of(size: str) -> tuple[int, int]:
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


def size_arguments(pipe: Any, size: str | None, frames: int | None) -> dict[str, int]:
    """What a pipeline is called with for pictures or videos of another size than its own.

    Args:
        size: see `sides_of`; None for the pipeline's own.
        frames: of a video, likewise.

    Raises:
        StackError: the pipeline's size is fixed, or it makes no videos.
    """
    names, kind = CallParameters.of(pipe).names, type(pipe).__name__
    given: dict[str, int] = {}
    if size is not None:
        given = dict(zip(SIDES, sides_of(size), strict=True))
        if not set(SIDES) <= set(names):
            raise StackError(f"{kind} takes no width and height: expected no --size, got {shown(size)}")
    if frames is not None:
        if frames < 1:
            raise StackError(f"--frames must be at least 1, got {frames}")
        name = next((name for name in FRAMES if name in names), None)
        if name is None:
            raise StackError(f"{kind} makes pictures: expected no --frames, got {frames}")
        given[name] = frames
    return given


def named_arguments(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline call by name; a number of steps that is None is left out.

    Raises:
        StackError: an unknown name, an argument too many, one given twice, or no number of steps.
    """
    takes, kind = CallParameters.of(pipe), type(pipe).__name__
    if len(args) > len(takes.positional):
        places = f"at most {len(takes.positional)} arguments by place ({', '.join(takes.positional)})"
        raise StackError(f"{kind} takes {places}, got {len(args)}: give the others by name")
    by_place = dict(zip(takes.positional, args, strict=False))
    for name in kwargs:
        if name in by_place:
            raise StackError(f"{kind} was given {name} twice, by place and by name: expected it once")
        if name not in takes.names and not takes.any_name:
            raise nearest(f"argument of {kind}", name, takes.names)
    given = {**by_place, **kwargs}
    if given.get(STEPS, 1) is None:
        del given[STEPS]
    steps = given.get(STEPS, 1)
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise StackError(f"{STEPS} must be a whole number of at least 1, got {steps!r}")
    return given
