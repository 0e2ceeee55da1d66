"""Numbers that are read back from the device: none on the cached steps of a schedule, one for a gate.

Run on a CPU as an accelerator would be: `reads_are_free` says no. Reads of a pipeline's own loop are not counted.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stack
from stack import Stack
from stack.caching.methods import PRESETS
from stack.core import readback

from .caching.fitted import PLAIN, fitted
from .conftest import PROMPT, picture, tiny_denoiser, tiny_pipe
from .wirings import FLUX

STEPS, BLOCKS, SAMPLES = 14, 4, 2
HERE = Path(stack.__file__).parent
# What a gate decides by has to be finished first: one read a step, of all samples together. A draft is checked once.
ONE = ("first-block", "dbcache", "dbcache-taylor", "teacache", "easycache", "rfc", "speca-published")
# Where FastCache goes on depends on what became of the block before: its gate reads once per block. Choosing tokens
# reads their number, merging whether any were merged.
FASTCACHE = {
    "fastcache": BLOCKS, "fastcache-published-gate": BLOCKS, "fastcache-published": 1 + 1 + BLOCKS,
    "fastcache-published-tokens": 1, "fastcache-published-merge": 1,
}  # fmt: skip
NONE = sorted(set(PLAIN) - {*ONE, *FASTCACHE})
EAGER = {  # so that steps are cached on a model without training
    "prefix": {"threshold": 1e9},
    "polynomial": {"threshold": 1e9},
    "sum": {"threshold": 1e9},
    "draft": {"accept": (1e9, 1.0, 1e9)},
}
# What has come back already; and the timestep of a pipeline whose scheduler counts no steps.
ELSEWHERE = ("core/readback.py, read", "runtime/hook.py")


class Reads(TorchDispatchMode):
    """Counts numbers read back from tensors by this package, with the function that asked for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.lines: list[str] = []
        tolist = torch.Tensor.tolist

        def counted(tensor: torch.Tensor) -> Any:
            self.note()
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(HERE)]
        if frames:
            where = Path(frames[-1].filename).relative_to(HERE).as_posix()
            self.lines.append(f"{where}, {frames[-1].name}")


def reads_by_step(preset: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[tuple[str, list[str]]]:
    """(kind, who read) for every step of two pictures in one batch."""
    monkeypatch.setattr(readback, "reads_are_free", lambda device: False)
    pipe = tiny_pipe()
    pipe.transformer = tiny_denoiser(double=2, single=2)
    options = fitted(preset, FLUX, BLOCKS, pipe.transformer.inner_dim, STEPS) | EAGER.get(
        PRESETS[preset].options()["gate"], {}
    )
    cached = Stack(pipe, steps=STEPS).cache(preset, **options, **more).apply()
    counter, made, forward = Reads(monkeypatch), [], pipe.transformer.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        start = len(counter.lines)
        out = forward(*args, **kwargs)
        made.append([line for line in counter.lines[start:] if not line.startswith(ELSEWHERE)])
        return out

    pipe.transformer.forward = counting
    with counter:
        picture(cached, STEPS, [PROMPT, "a blue star"])
    kinds = [record.kind for record in cached.report().steps]
    return list(zip(kinds, made, strict=True))


@pytest.mark.parametrize("preset", NONE)
def test_cached_steps_of_a_schedule_read_nothing(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = reads_by_step(preset, monkeypatch)
    assert sum(kind != "full" for kind, _ in steps) >= 3
    assert not [lines for kind, lines in steps if kind != "full" and lines]


@pytest.mark.parametrize("preset", ONE)
def test_a_gate_reads_once_a_step_for_all_samples(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [len(lines) for kind, lines in reads_by_step(preset, monkeypatch) if kind != "full"]
    assert len(counts) >= 3 and set(counts) == {1}


@pytest.mark.parametrize("corrected", [True, False])
def test_a_schedule_that_measures_itself_reads_nothing(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What full steps measure is sent for, and taken when it is there."""
    steps = reads_by_step("svd", monkeypatch, max_error=0.5, corrected=corrected)
    assert sum(kind == "cached" for kind, _ in steps) >= 3
    assert not [lines for _, lines in steps[1:] if lines], "the first one reads the sampler's schedule"


@pytest.mark.parametrize("preset", FASTCACHE)
def test_fastcache_reads_for_every_block_and_sample(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [len(lines) for _, lines in reads_by_step(preset, monkeypatch)]
    assert max(counts[PRESETS[preset].schedule.warmup :]) == SAMPLES * FASTCACHE[preset]
