"""How many Python functions of this package one step calls, and in how many of its files.

A cached step of a small model is mostly Python: its calls are its price, and they can be counted where times scatter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import stack
from stack import Stack

from ..conftest import picture, tiny_pipe
from ..models import test_dit, test_hunyuan_video

STEPS, PATTERN = 14, "fffccccccfcccc"
HERE = Path(stack.__file__).parent
OURS = {path.as_posix(): path.relative_to(HERE).as_posix() for path in HERE.rglob("*.py")}
# A pipeline of the reference models is taken for the user's.
THEIRS = "reference/"


class Counted:
    """Calls of functions of this package in each call of a denoiser, by file."""

    def __init__(self, denoiser: Any):
        self.steps: list[list[str]] = []
        self._inner, denoiser.forward = denoiser.forward, self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        files: list[str] = []

        def note(frame: FrameType, event: str, arg: Any) -> None:
            name = OURS.get(frame.f_code.co_filename, THEIRS) if event == "call" else THEIRS
            if not name.startswith(THEIRS):
                files.append(name)

        sys.setprofile(note)
        try:
            return self._inner(*args, **kwargs)
        finally:
            sys.setprofile(None)
            self.steps.append(files)


FAMILIES = {
    "flux": (tiny_pipe, lambda run: picture(run, STEPS)),
    "dit": (test_dit.tiny, test_dit.draw),
    "hunyuan-video": (test_hunyuan_video.tiny, test_hunyuan_video.draw),
}


def counts(family: str, method: str, **options: Any) -> list[tuple[str, int, int]]:
    """(kind, calls, files) of every step of a model's second picture under a cache."""
    make, draw = FAMILIES[family]
    with Stack(make(), steps=STEPS).cache(method, **options) as fast:
        draw(fast)
        counted = Counted(fast.denoiser)
        draw(fast)
        kinds = [record.kind[0] for record in fast.report().steps]
    return [(kind, len(files), len(set(files))) for kind, files in zip(kinds, counted.steps, strict=True)]


def test_a_step_of_a_two_block_flux_costs_few_calls_in_few_files() -> None:
    """184 calls in 28 files on a cached step and 233 on a full one, before calls passed one chain.

    The eleventh file, and one call of a full step, are the denoiser call's own: it knows how outputs are laid out.
    """
    found = counts("flux", "svd-published")
    assert "".join(kind for kind, *_ in found) == PATTERN
    cached = [(calls, files) for kind, calls, files in found if kind == "c"]
    assert max(calls for calls, _ in cached) <= 80 and max(files for _, files in cached) <= 11
    # The first step of a request also makes what the others use.
    assert max(calls for kind, calls, _ in found[1:] if kind == "f") <= 123


@pytest.mark.parametrize("family", FAMILIES)
def test_most_cached_steps_cost_about_sixty_calls_in_every_family(family: str) -> None:
    """Each block and embedder costs one; nothing else may grow with the model."""
    for method, most in (("svd-published", 62), ("svd", 75)):  # what a corrector keeps in mind is the difference
        cached = sorted(calls for kind, calls, _ in counts(family, method, interval=7, warmup=3) if kind == "c")
        assert cached[len(cached) // 2] <= most
