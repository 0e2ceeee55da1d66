"""The shipped models, ready to use."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..core.errors import StackError, choose
from ..core.facts import best_dtype
from ..runtime.call_arguments import sides_of
from .classes import class_words, parse_class, sample_class
from .classifier import ATTRIBUTES, Answers, SceneClassifier
from .classifier import asked as answers_of_scene
from .clip_reader import ClipReader, clip_answers
from .clips import Clip, parse_clip, sample_clip
from .dit_pipeline import ShapesDiTPipeline
from .names import DESCRIPTIONS, MODELS, folder_of, weights_folder
from .pipeline import ShapesFluxPipeline
from .scenes import Scene, parse, sample
from .shapes_flux import for_128_pixels
from .video_pipeline import ShapesVideoPipeline


class SceneReader(Protocol):
    """Names what pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [-1, 1] show."""

    def read(self, pictures: torch.Tensor, /) -> list[dict[str, str]]:
        """What each one shows, by question."""
        ...

    def accuracy(self, pictures: torch.Tensor, scenes: Any, questions: Iterable[str], /) -> float:
        """Share of right answers to these questions about the scenes that were asked for. In [0, 1]."""
        ...


def _itself(loaded: Any) -> Any:
    return loaded


@dataclass(frozen=True)
class Reference:
    """A model that ships, and what may be asked of it.

    Attributes:
        description: one line for lists.
        pipeline: the class its folder is loaded with.
        sample: draws a scene of the kind it was trained on.
        prompt: the words that ask it for a scene.
        parse: the scene that words ask for; a StackError says which words it knows.
        example: a prompt, for where none is given.
        asked: the questions whose answers those words give; the rest of the scene is the model's own choice.
        answers: the right answer to every question about a scene.
        reader: what names the scenes in pictures or videos, made of the reader of pictures.
        fitted: makes its pipeline of the one with those weights.
    """

    description: str
    pipeline: Any
    sample: Callable[[random.Random], Any]
    prompt: Callable[[Any], str]
    parse: Callable[[str], Any]
    example: str
    asked: tuple[str, ...]
    answers: Callable[[Any], Answers] = answers_of_scene
    reader: Callable[[SceneClassifier], SceneReader] = _itself
    fitted: Callable[[Any], Any] = _itself


_FLUX = Reference(
    description=DESCRIPTIONS["shapes-flux"],
    pipeline=ShapesFluxPipeline,
    sample=sample,
    prompt=Scene.caption,
    parse=parse,
    example="a red ring left of a blue star",
    asked=tuple(ATTRIBUTES),
)
REFERENCES = {
    "shapes-flux": _FLUX,
    "shapes-flux-128": replace(
        _FLUX,
        description=DESCRIPTIONS["shapes-flux-128"],
        fitted=for_128_pixels,
    ),
    "shapes-dit": Reference(
        description=DESCRIPTIONS["shapes-dit"],
        pipeline=ShapesDiTPipeline,
        sample=sample_class,
        prompt=class_words,
        parse=parse_class,
        example="a red ring",
        asked=("colour", "shape"),
    ),
    "shapes-video": Reference(
        description=DESCRIPTIONS["shapes-video"],
        pipeline=ShapesVideoPipeline,
        sample=sample_clip,
        prompt=Clip.caption,
        parse=parse_clip,
        example="a red ring moving left on a white background",
        asked=("colour", "shape", "background", "direction"),
        answers=clip_answers,
        reader=ClipReader,
    ),
}


def reference(name: str) -> Reference:
    """What is known of a reference model.

    Raises:
        StackError: unknown name.
    """
    if name not in REFERENCES:
        raise choose("reference model", name, list(REFERENCES))
    return REFERENCES[name]


def name_of(pipe: Any) -> str | None:
    """The reference model whose kind of pipeline this is; None for anything else."""
    return next((name for name, known in REFERENCES.items() if isinstance(pipe, known.pipeline)), None)


def at_size(model: str, size: str | None) -> str:
    """The model that is trained for pictures of a size, where there is one; else this one.

    Args:
        size: see `sides_of`; None for the model's own.

    Raises:
        StackError: it is no size.
    """
    width, height = (0, 0) if size is None else sides_of(size)
    trained = f"{model}-{width}"
    return trained if width == height and trained in REFERENCES else model


def load(name: str, dtype: torch.dtype | None = None) -> Any:
    """A reference model as a diffusers pipeline on the CPU.

    Args:
        dtype: by default the one that a CPU like this computes fastest, as in `stack.loading.load`.

    Raises:
        StackError: unknown name, or a model whose weights do not ship.
    """
    if name in REFERENCES and name not in MODELS:
        raise StackError(f"the weights of {name} do not ship: python -m training.train {name} makes them")
    known = reference(name)
    dtype = dtype or best_dtype(torch.device("cpu"))
    pipe = known.fitted(known.pipeline.from_pretrained(folder_of(name), dtype=dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_reader(name: str) -> SceneReader:
    """What names the pictures or videos of a reference model.

    Raises:
        StackError: unknown name.
    """
    return reference(name).reader(load_classifier())


def load_classifier() -> SceneClassifier:
    """The net that names what a picture shows, on the CPU in fp32."""
    return SceneClassifier.from_pretrained(weights_folder() / "reader").eval()
