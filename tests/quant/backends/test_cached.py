"""Every backend under caches on a trained model: a cache loses as much of the picture as it does on native weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.core.facts import machine_of
from stack.loading import load
from stack.quant.backends import BACKENDS
from stack.quant.schemes import SCHEMES

from ...conftest import PROMPT

HERE = machine_of(torch.device("cpu"))
STEPS, SIZE = 12, 32
CACHES = {
    "svd": Cache("svd"),
    "predictor-corrector": Cache("predictor-corrector"),
    "fora": Cache("fora"),
    "duca": Cache("duca"),
    "first-block": Cache("first-block", threshold=0.8),  # so large a change from step to step: there are few of them
}
# quanto's 4-bit product wants multiples of 128; the model is 192 wide.
TOO_NARROW = ("int4-weight", "quanto")
RUN = [(s, b) for s in SCHEMES for b in BACKENDS if b != "native" and not BACKENDS[b].refuses(SCHEMES[s], HERE)]
LARGEST_DIFFERENCE = 1.0  # dB


def picture(run: Any, steps: int = STEPS) -> torch.Tensor:
    seed = torch.Generator().manual_seed(1)
    size = {"height": SIZE, "width": SIZE}
    made: torch.Tensor = run(PROMPT, num_inference_steps=steps, generator=seed, output_type="pt", **size).images
    return made.float()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def measured(scheme: str, backend: str) -> dict[str, tuple[float, str]]:
    """By cache: PSNR against the same quantized model without a cache, in dB, and the kinds of the steps."""
    pipe = load("shapes-flux", torch.bfloat16, "cpu")
    pipe.set_progress_bar_config(disable=True)
    stack = Stack(pipe, steps=STEPS).quantize(scheme, backend=backend).add(CACHES["svd"]).apply()
    picture(stack, steps=1)  # some libraries lay out their weights anew in their first call, which drops cached state
    pictures, kinds = {}, {}
    for name, method in CACHES.items():  # below them the weights stay as they are
        stack.replace(method)
        pictures[name] = picture(stack)
        kinds[name] = "".join(step.kind[0] for step in stack.report().steps)
    whole = picture(stack.undo("cache"))
    stack.undo()
    return {name: (psnr(made, whole), kinds[name]) for name, made in pictures.items()}


def psnr(made: torch.Tensor, whole: torch.Tensor) -> float:
    return float(-10 * (made - whole).square().mean().log10())


@pytest.mark.parametrize(("scheme", "backend"), [pair for pair in RUN if pair != TOO_NARROW])
def test_a_cache_loses_what_it_loses_on_native_weights(scheme: str, backend: str) -> None:
    native, library = measured(scheme, "native"), measured(scheme, backend)
    for name, (loss, kinds) in library.items():
        assert set(kinds) & {"c", "p"}, (name, kinds)
        assert kinds == native[name][1] or name == "first-block", "a gate reads the features, a schedule does not"
        assert abs(loss - native[name][0]) < LARGEST_DIFFERENCE, (name, loss, native[name])
        assert 20 < loss < 50, "the picture of the same model, but for what is forecast"


def test_what_is_too_narrow_is_said() -> None:
    pipe = load("shapes-flux", torch.bfloat16, "cpu")
    with pytest.raises(StackError, match=r"0 of 60 linears .*192 is no multiple of 128"):
        Stack(pipe).quantize(TOO_NARROW[0], backend=TOO_NARROW[1]).apply()
