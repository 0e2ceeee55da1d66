"""A pipeline call's arguments by name, as the pipeline's own signature takes them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from ..core.errors import StackError, nearest
from ..core.files import reason
from ..core.parameters import parameters_of, reached, takes_any
from ..core.validate import shown

STEPS = "num_inference_steps"
ASSUMED_STEPS = 50  # of a loop over a bare denoiser, and of a pipeline that does not say its own number
PROMPT = "prompt"
SIDES, FRAMES = ("width", "height"), ("num_frames", "video_length")
GUIDANCE, NEGATIVE = "guidance_scale", "negative_prompt"
TRUE_GUIDANCE = "true_cfg_scale"  # of a model whose guidance_scale is an input: what a negative prompt needs
_TAKES_IMAGES = re.compile(r"(^|_)images?(_\d+)?$")

Call = Mapping[str, Any] | Callable[[list[Any]], Mapping[str, Any]]
"""Arguments for every call of the pipeline, or a function of the prompts of a call that gives them."""


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
        for parameters in reached(type(pipe), "__call__"):
            positional += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][len(positional) :]
            named += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            any_name = takes_any(parameters)
        return cls(tuple(positional), tuple(n for n in dict.fromkeys(named) if n not in positional), any_name)

    @property
    def takes_prompts(self) -> str:
        """The argument that prompts go to: `prompt`, or the first where there is none (`class_labels` of DiT)."""
        return PROMPT if PROMPT in self.names else self.positional[0]


def own_steps(pipe: Any) -> int:
    """The number of steps that a pipeline takes where its caller names none; 50 where it does not say."""
    from diffusers import ModularPipeline

    if isinstance(pipe, ModularPipeline):
        said = [taken.default for taken in pipe.blocks.inputs if taken.name == STEPS]
    else:
        parameters = parameters_of(type(pipe), "__call__")
        said = [parameters[STEPS].default] if STEPS in parameters else []
    return next((steps for steps in said if isinstance(steps, int)), ASSUMED_STEPS)


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


def call_of(
    pipe: Any,
    size: str | None = None,
    frames: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    call: Call | None = None,
) -> Call:
    """The arguments of every call beside prompts, seed and steps.

    Args:
        size, frames: see `size_arguments`.
        guidance: `guidance_scale` of the call.
        call: any other arguments by name, or a function of the prompts of a call that gives them. An image may be the
            path of its file. They win over the above.

    Raises:
        StackError: the pipeline takes no such argument, or a file is no image.
    """
    given: dict[str, Any] = size_arguments(pipe, size, frames)
    names = CallParameters.of(pipe).names
    for option, name, value in (("guidance", GUIDANCE, guidance), ("negative prompt", NEGATIVE, negative_prompt)):
        if value is not None and name not in names:
            raise StackError(f"{type(pipe).__name__} takes no {name}: expected no {option}, got {shown(value)}")
        given |= {} if value is None else {name: value}
    if callable(call):
        return (lambda prompts: {**given, **call(prompts)}) if given else call
    if call is not None and not isinstance(call, Mapping):
        raise StackError(f"call= must be arguments by name, or a function that gives them, got {shown(call)}")
    given |= {name: _with_images(name, value) for name, value in (call or {}).items()}
    if given.get(NEGATIVE) and not _guides(pipe, given):
        kind = type(pipe).__name__
        warnings.warn(f"{kind} ignores negative_prompt unless {TRUE_GUIDANCE} is above 1: try 4.0", stacklevel=2)
    return given


def _guides(pipe: Any, given: Mapping[str, Any]) -> bool:
    """Whether a pipeline that tells real guidance from a distilled one has it in this call."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(TRUE_GUIDANCE)
    if parameter is None:
        return True
    scale = given.get(TRUE_GUIDANCE, parameter.default)
    return not isinstance(scale, int | float) or scale > 1


def _with_images(name: Any, value: Any) -> Any:
    """An argument that takes images, with the files that it names read."""
    if not isinstance(name, str) or not _TAKES_IMAGES.search(name):
        return value
    if isinstance(value, list | tuple):
        return [_with_images(name, one) for one in value]
    return _read_image(name, value) if isinstance(value, str | Path) else value


def _read_image(name: str, path: str | Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise StackError(f"{name}: expected the file of an image, got {shown(str(path))} ({reason(error)})") from None


def call_words(call: Call) -> dict[str, Any]:
    """Call arguments as a record has them: plain values as they are, of anything else what it is."""
    if callable(call):
        return {"call": "a function of the prompts"}
    plain = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, plain) else type(value).__name__ for name, value in call.items()}


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
