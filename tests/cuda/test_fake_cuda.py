"""What the host does on a GPU, counted without one: FLUX.1-dev's width and tokens, a few of its blocks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from stack.attention.layers import AttentionCall, put_backend
from stack.caching.methods import PRESETS
from stack.calibration.observe import Observe
from stack.core.installer import Installer
from stack.runtime.target import Target

from ..test_reads import NONE
from .fake import fake_cuda
from .models import BLOCKS
from .run import preset, run

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch")

CALLS = 250  # of a step on which no block runs: about 2 ms of launches
OVERHEAD = 3  # calls of an eager quantized step over those in bf16
WHOLE = [name for name in NONE if PRESETS[name].site.name in ("output", "residual", "x0")]
QUANTIZED = (
    ("int8", "native"), ("int8", "torchao"), ("fp8", "torchao"), ("int8-weight", "native"), ("int8-weight", "torchao"),
    ("fp8-weight", "torchao"), ("nf4", "native"),
)  # fmt: skip
OTHERS = ("svd", "predictor-corrector", "taylorseer", "rfc", "toca", "magcache", "fastcache", "fastcache-published")


def family_of(name: str) -> str:
    """FLUX reads its grid off its positions, which hold no numbers here: caches that ask for it run on a video."""
    return "hunyuan-video" if PRESETS[name].banded or PRESETS[name].options().get("grid", (0,))[0] else "flux"


@cache
def quantized(scheme: str, backend: str) -> int:
    """Calls of an eager step of FLUX with quantized linears; without a scheme in bf16."""
    made = run(lambda stack: stack.quantize(scheme, backend=backend) if scheme else stack, steps=1)
    return made.steps[0][0]


def test_the_recorder_notices() -> None:
    with fake_cuda() as recorder:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="at least two devices, cpu and cuda"):
            here + there
        before = recorder.calls
        there + there
        here.to("cuda", non_blocking=True)
        assert recorder.calls == before + 2 and not recorder.waits
        float(there.sum())
        there.tolist()
        there.cpu()
        here.to("cuda")
    kinds = [wait.partition(" at ")[0] for wait in recorder.waits]
    assert kinds == ["read", "tolist", "copy cuda to cpu", "copy cpu to cuda"]


@pytest.mark.parametrize("name", NONE)
def test_cached_steps_of_a_schedule_do_not_wait(name: str) -> None:
    made = preset(name, family_of(name))
    assert len(made.of("cached", "partial")) >= 3
    waits = made.waits("cached", "partial")
    assert not waits


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_without_blocks_is_few_calls(name: str) -> None:
    calls = [calls for calls, _ in preset(name, family_of(name)).of("cached")]
    assert 0 < max(calls) <= CALLS


@pytest.mark.parametrize("scheme, backend", QUANTIZED)
def test_quantized_linears_are_few_calls(scheme: str, backend: str) -> None:
    assert quantized("", "") < quantized(scheme, backend) <= OVERHEAD * quantized("", "")


def test_neither_weights_nor_prompts_are_read() -> None:
    """A request allows one read for content; objects, addresses and versions tell enough."""
    waits = preset("svd").waits("full", "cached", "partial")
    assert not [wait for wait in waits if "compat/content.py" in wait]


@pytest.mark.parametrize("family", ["dit", "hunyuan-video"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_have_nothing_on_another_device(family: str, name: str) -> None:
    """An operation on tensors of two devices raises."""
    kinds = preset(name, family, batch=2).kinds
    assert kinds[0] == "full" and len(set(kinds)) > 1


def test_a_sampler_is_known_and_its_steps_are_cached_as_planned() -> None:
    """Noise levels are real numbers here: every step is known, and runs as the schedule says."""
    made = preset("predictor-corrector")
    assert [step for step, kind in enumerate(made.kinds) if kind == "full"] == [0, 4, 9, 13]
    assert made.waits("full", "cached") == ["read at runtime/hook.py:183"]  # the first call's timestep


class Asking:
    """Asks every attention call what its mask hides, and computes none."""

    def unfit(self, call: AttentionCall) -> str:
        return call.hides

    def run(self, *_: Any) -> torch.Tensor:
        raise AssertionError

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Not counted."""


def test_masks_are_looked_into_on_the_first_step_alone() -> None:
    """Each call of HunyuanVideo's attention has a mask."""

    def asking(target: Target, install: Installer) -> None:
        put_backend(target, install, Asking())

    made = run(lambda stack: stack.add(Observe(asking)), "hunyuan-video", steps=4)
    looks = [[wait for wait in waits if "attention/layers.py" in wait] for _, waits in made.steps]
    assert [len(each) for each in looks] == [BLOCKS, 0, 0, 0]
    assert [waits for _, waits in made.steps[1:]] == [[], [], []]
