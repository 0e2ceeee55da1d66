"""The pages about moving from other libraries: a row can be written on both sides, and "same" means the same bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack, StackError, load
from stack.measure.metrics import psnr

from ..conftest import PROMPT, tiny_denoiser, tiny_pipe
from .blocks import ROOT

cache_dit = pytest.importorskip("cache_dit", reason="of the extra bench")
STEPS, SEED = 20, 1
SPAN = re.compile(r"`([^`]+)`")
HERE = re.compile(r"(cache|quantize|sage_attn|compile|solver|sparse_attn)\(")
NOT_ON_A_CPU = {'quantize("fp8")': "only on CUDA"}
RATIOS = (1.0, *[0.98] * (STEPS - 1))
MASK = cache_dit.steps_mask(compute_bins=[4, 1, 1, 1, 1], cache_bins=[3, 3, 3, 3], total_steps=STEPS)
Put = Callable[[Any], Any]


def spans(page: str) -> list[str]:
    rows = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|")]
    return [span for row in rows for span in SPAN.findall(row)]


PAGES = {"from-diffusers-hooks.md": diffusers, "from-cache-dit.md": cache_dit}
SPANS = [(page, span) for page in PAGES for span in spans(page) if "..." not in span]
THEIRS = [(page, span) for page, span in SPANS if re.match(r"\w+Config\(", span)]
OURS = sorted({span for _, span in SPANS if HERE.match(span)})


@pytest.mark.parametrize(("page", "span"), THEIRS)
def test_what_is_there_can_be_made(page: str, span: str) -> None:
    name = span.partition("(")[0]
    assert type(eval(span, {name: getattr(PAGES[page], name)})).__name__ == name


@pytest.fixture(scope="module")
def deep() -> Any:
    """A pipeline with blocks enough for every front and back that the pages name."""
    pipe = tiny_pipe()
    pipe.transformer = tiny_denoiser(4, 8)
    return pipe


@pytest.mark.parametrize("span", OURS)
def test_what_is_here_can_be_planned(span: str, deep: Any) -> None:
    if ".fit_rounding" in span:
        span = 'quantize("nf4")'  # with error feedback the plan needs what fitting makes
    # Fitting runs the model: the ratios of such a run stand in for it.
    call = re.sub(r'("magcache[a-z-]*")', rf"\1, ratios={RATIOS}", span.partition(".fit_gate")[0])
    stack = eval(f"stack.{call}", {"stack": Stack(deep, steps=STEPS)})
    if span in NOT_ON_A_CPU:
        with pytest.raises(StackError, match=NOT_ON_A_CPU[span]):
            stack.explain()
    else:
        assert stack.explain().startswith("flux denoiser: 12 blocks")


def picture(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    made: torch.Tensor = pipe(
        PROMPT, num_inference_steps=STEPS, height=32, width=32, generator=generator, output_type="pt"
    ).images
    return made.float()


def theirs(pipe: Any, put: Put) -> torch.Tensor:
    """The picture of a copy of the denoiser that another library's cache is on."""
    own, pipe.transformer = pipe.transformer, copy.deepcopy(pipe.transformer)
    try:
        put(pipe.transformer)
        return picture(pipe)
    finally:
        pipe.transformer = own


def ours(pipe: Any, method: str, **options: Any) -> torch.Tensor:
    with Stack(pipe, steps=STEPS).cache(method, **options) as fast:
        made = picture(fast)
        assert 0 < fast.report().full_steps < STEPS
    return made


def dual(**options: Any) -> Put:
    config = cache_dit.DBCacheConfig(num_inference_steps=STEPS, **options)
    return lambda denoiser: cache_dit.enable_cache(denoiser, cache_config=config)


def front(front: int = 1, back: int = 0, threshold: float = 0.1) -> dict[str, Any]:
    return {"Fn_compute_blocks": front, "Bn_compute_blocks": back, "residual_diff_threshold": threshold} | {
        "max_warmup_steps": 3
    }


SAME: dict[str, tuple[Put, dict[str, Any]]] = {
    "first-block": (
        lambda denoiser: denoiser.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1)),
        {"method": "first-block-published", "threshold": 0.1},
    ),
    "MagCache": (
        lambda denoiser: denoiser.enable_cache(
            diffusers.MagCacheConfig(num_inference_steps=STEPS, mag_ratios=list(RATIOS))
        ),
        {"method": "magcache-published", "threshold": 0.06, "longest": 3, "retention": 0.2, "ratios": RATIOS},
    ),
    "F1B0": (dual(**front()), {"method": "dbcache-published", "front": 1, "back": 0, "threshold": 0.1, "warmup": 3}),
    "F2B1": (dual(**front(2, 1)), {"method": "dbcache-published", "threshold": 0.1, "warmup": 3}),
    "longest": (
        dual(**front(threshold=0.3), max_continuous_cached_steps=2),
        {"method": "dbcache-published", "front": 1, "back": 0, "threshold": 0.3, "warmup": 3, "longest": 2},
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAME)
def test_same_means_the_same_bits(name: str) -> None:
    pipe = load("shapes-flux")
    put, options = SAME[name]
    assert torch.equal(theirs(pipe, put), ours(pipe, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_mask_is_the_same_as_its_full_steps_and_worse_than_as_many_well_placed() -> None:
    pipe = load("shapes-flux")
    base = picture(pipe)
    full = [step for step, runs in enumerate(MASK) if runs]
    masked = theirs(pipe, dual(**front(), steps_computation_mask=MASK, steps_computation_policy="static"))
    site = {"site": "residual", "front": 1, "corrected": False}
    assert torch.equal(masked, ours(pipe, method="reuse", full_steps=full, steps=STEPS, **site))
    placed = ours(pipe, method="svd", count=len(full))
    assert psnr(placed, base) > psnr(masked, base) + 10
