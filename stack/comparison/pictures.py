"""Pictures of one run in a folder. Each says of which run it is, so that two runs never mix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import StackError
from ..core.files import claimed, folder_for, whole
from ..core.validate import Seed, checked, shown
from ..reference.prompts import Prompts, drawn_prompts
from ..runtime.call_arguments import Call, CallParameters, call_of
from ..runtime.pipeline_calls import given_with, pipeline_for, refusals
from ..stack import Stack
from .kept import key_of

if TYPE_CHECKING:
    from ..runtime.report import Report

DEFAULT_FOLDER = Path("ditstack-run")
KEY = "ditstack"  # of the text inside a picture's file
FRAME_MS = 125  # how long a frame of a video is shown
_NAME = re.compile(r"\d{3,}-.*\.png")


@dataclass(frozen=True)
class Made:
    """A picture, or a video as an animated picture, in a file.

    Attributes:
        report: what each of its steps did.
    """

    prompt: str
    seed: int
    path: Path
    report: Report

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"prompt": self.prompt, "seed": self.seed, "path": str(self.path), "report": self.report.as_dict()}


def run(
    stack: Stack,
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    size: str | None = None,
    frames: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    call: Call | None = None,
    model: str = "",
    recipe: str = "stack",
) -> Iterator[Made]:
    """Make a picture of every prompt with a stack, and write each to a file as it is made.

    Args:
        prompts: texts, the path of a file of them, or how many captions of a reference model; see
            `stack.reference.prompts.drawn_prompts`.
        out: folder for them; by default ditstack-run, or ditstack-run-2 and so on.
        seed: of the first prompt; prompt i has seed + i.
        size, frames, guidance, negative_prompt, call: see `stack.runtime.call_arguments.call_of`.
        model, recipe: names that are written into the files' metadata.

    Raises:
        StackError: the folder holds pictures of another run, or the pipeline refuses a prompt or an argument.
    """
    if not isinstance(stack, Stack):
        raise StackError(f"run() draws with a stack: expected Stack(pipe), got {shown(stack)}")
    pipe = pipeline_for("run()", stack.pipe)
    texts = drawn_prompts(pipe, prompts, checked(Seed, seed, "seed"), model)
    given = call_of(pipe, size, frames, guidance, negative_prompt, call)
    words = run_words(stack, texts, seed, given, model, recipe)  # a clash is told first
    folder = folder_for(None if out is None else Path(out), DEFAULT_FOLDER, lambda one: _others(one, words))
    with claimed(folder, "--out"):
        for number, text in enumerate(texts):
            path = path_of(folder, number, str(text))
            save_picture(drawn(stack, text, seed + number, given), path, words)
            yield Made(str(text), seed + number, path, stack.report())


def run_words(stack: Stack, texts: Sequence[str], seed: int, call: Call | None, model: str, recipe: str) -> str:
    """A run in words: the same words are the same run."""
    short = key_of({"passes": list(stack.passes), "texts": list(texts), "call": call})[:8]
    steps = stack.plan.facts_after.steps
    return f"recipe {recipe}, model {model}, {steps} steps, seed {seed}, {len(texts)} prompts, id {short}"


def path_of(folder: Path, number: int, text: str) -> Path:
    """Where a run's picture of a prompt goes."""
    return folder / f"{number:03d}-{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}.png"


def _others(folder: Path, run: str) -> str:
    """Pictures of another run in a folder, in words; "" where there are none."""
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and (other := _run_of(path)) != run:
            return f"pictures of another run ({path.name}: {other})"
    return ""


def _run_of(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return str(picture.info.get(KEY, "unknown"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError):
        return "unknown"


def save_picture(drawn: Any, path: Path, run: str) -> None:
    """Write a picture, or the list of a video's frames, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    first, *rest = drawn if isinstance(drawn, list) else [drawn]
    about = PngInfo()
    about.add_itxt(KEY, run)
    frames: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": FRAME_MS, "loop": 0} if rest else {}
    with whole(path) as made:
        first.save(made, pnginfo=about, **frames)


def drawn(stack: Stack, text: str, seed: int, call: Call | None = None) -> Any:
    """One picture, or the frames of one video.

    Raises:
        StackError: the pipeline refuses the prompt.
    """
    more = given_with(call, [text])
    generator = torch.Generator("cpu").manual_seed(seed)
    prompt = {CallParameters.of(stack.pipe).takes_prompts: text}
    with refusals(stack.pipe, [text], more):
        return stack(**{**prompt, **more}, generator=generator, output_type="pil", return_dict=False)[0][0]
