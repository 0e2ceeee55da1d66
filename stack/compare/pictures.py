"""Pictures of one run in a folder. Each says of which run it is, so that two runs never mix."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import StackError
from ..core.files import reason, whole
from ..core.validate import shown
from ..runtime.call_arguments import CallParameters

KEY = "ditstack"  # of the text inside a picture's file
FRAME_MS = 125  # how long a frame of a video is shown
_NAME = re.compile(r"\d{3,}-.*\.png")


def run_words(
    recipe: Any, model: str, steps: int, seed: int, texts: Sequence[str], size: Mapping[str, int] | None = None
) -> str:
    """A run in words: the same words are the same run."""
    what = json.dumps([recipe.stages, list(texts), *([size] if size else [])], sort_keys=True, default=str)
    short = hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()[:8]
    return f"recipe {recipe.name}, model {model}, {steps} steps, seed {seed}, {len(texts)} prompts, id {short}"


def path_of(folder: Path, number: int, text: str) -> Path:
    """Where a run's picture of a prompt goes."""
    return folder / f"{number:03d}-{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}.png"


def check_run(folder: Path, run: str, option: str) -> None:
    """Whether a folder holds no pictures but this run's.

    Raises:
        StackError: it does; the message names the other run.
    """
    if found := _others(folder, run):
        path, other = found
        what = f"{folder} holds pictures of another run ({path.name}: {other})"
        raise StackError(f"{option}: {what}: choose another folder")


def free_folder(base: Path, run: str) -> Path:
    """The first of base, base-2, base-3, ... that holds no pictures of another run."""
    numbered = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists() or (folder.is_dir() and not _others(folder, run)))


def _others(folder: Path, run: str) -> tuple[Path, str] | None:
    """A picture of another run, and that run in words."""
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and (other := _run_of(path)) != run:
            return path, other
    return None


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


def drawn(stack: Any, pipe: Any, text: str, generator: Any, size: Mapping[str, int]) -> Any:
    """One picture, or the frames of one video.

    Args:
        stack: on `pipe`.
        size: further arguments, see `stack.runtime.call_arguments.size_arguments`.

    Raises:
        StackError: the pipeline refuses the prompt.
    """
    try:
        prompt = {CallParameters.of(pipe).takes_prompts: text}
        return stack(**prompt, **size, generator=generator, output_type="pil", return_dict=False)[0][0]
    except (ValueError, TypeError) as error:
        if isinstance(error, StackError):
            raise
        raise StackError(f"the pipeline refuses the prompt {shown(text)}: {reason(error)}") from None
