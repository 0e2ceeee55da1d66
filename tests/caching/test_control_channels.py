"""Further channels behind the latent, conditions that go in or a variance that comes out: caches take the first ones.

With weights of 0 for the further channels that go in, a denoiser is the one without them: both must give the same. So
must a denoiser that returns more, whose first channels are those of the narrow one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stack import Stack
from stack.caching.cache import Cache
from stack.models.schedule import uniform
from training.shapes_flux import TRANSFORMER

from ..conftest import inputs, tiny_denoiser
from ..test_plan import FACTS

STEPS = 14
CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "corrector": ("svd", {"corrected": True, "interval": 4}),
    "x0": ("predictor-corrector", {}),
    "x0 in bfloat16": ("predictor-corrector", {"state_dtype": "bfloat16"}),
    "whole model": ("easycache-published", {"threshold": 9.0, "warmup": 2}),
}


def widened(narrow: Any) -> Any:
    """The same denoiser with twelve more channels, which it does not look at."""
    small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "in_channels": 24, "out_channels": 12}
    wide = FluxTransformer2DModel(**{**TRANSFORMER, **small}).eval()
    weights = narrow.state_dict()
    plain = weights["x_embedder.weight"]
    weights["x_embedder.weight"] = torch.cat([plain, torch.zeros_like(plain)], 1)
    wide.load_state_dict(weights)
    return wide


def varied(narrow: Any) -> Any:
    """The same denoiser with a variance of twelve channels behind its output."""
    small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "in_channels": 12, "out_channels": 24}
    wide = FluxTransformer2DModel(**{**TRANSFORMER, **small}).eval()
    weights = narrow.state_dict()
    for name in ("proj_out.weight", "proj_out.bias"):
        weights[name] = torch.cat([weights[name], weights[name].flip(0)])
    wide.load_state_dict(weights)
    return wide


@torch.no_grad()
def sampled(denoiser: Any, method: str, options: dict[str, Any], channels: int) -> tuple[torch.Tensor, list[str], int]:
    """The latent behind an Euler loop of two samples, what each step was, and the bytes that are held."""
    with Stack(denoiser, steps=STEPS).cache(method, **options) as stack:
        sigmas = (*uniform(STEPS).sigmas, 0.0)
        given = inputs(batch=2)
        x, control = given["hidden_states"], torch.randn(2, 64, channels, generator=torch.Generator().manual_seed(5))
        for at, to in pairwise(sigmas):
            call = given | {"hidden_states": torch.cat([x, control], 2), "timestep": torch.full((2,), at)}
            x = x + (to - at) * denoiser(**call)[0][..., :12]
        report = stack.report()
    return x, [record.kind for record in report.steps], report.cache_bytes


@pytest.mark.parametrize(("wide", "channels"), [(widened, 12), (varied, 0)])
@pytest.mark.parametrize("name", CACHES)
def test_the_latent_is_in_the_first_channels(name: str, wide: Callable[[Any], Any], channels: int) -> None:
    method, options = CACHES[name]
    narrow = tiny_denoiser()
    expected, kinds, _ = sampled(narrow, method, options, 0)
    got, wide_kinds, _ = sampled(wide(narrow), method, options, channels)
    assert wide_kinds == kinds and "cached" in kinds
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["easycache-published", "predictor-corrector"])
def test_more_out_than_in_is_refused_and_more_in_than_out_is_not(method: str) -> None:
    facts = replace(FACTS, latent=(24, 12))
    assert not [f for f in Cache(method).check(facts) if f.fatal or f.rule == "more-than-the-latent"]
    (refused,) = [f for f in Cache(method).check(replace(FACTS, latent=(12, 36))) if f.fatal]
    assert refused.rule == "more-than-the-latent" and "a variance behind them, got 36 for 12" in refused.what


def test_a_corrector_stays_where_conditions_go_in_too() -> None:
    corrected = Cache("svd", corrected=True)
    assert not [f for f in corrected.check(replace(FACTS, latent=(24, 12))) if f.rule == "more-than-the-latent"]
    (repaired,) = [f for f in corrected.check(replace(FACTS, latent=(12, 36))) if f.rule == "more-than-the-latent"]
    assert repaired.repair == "full steps correct nothing"
    calibrated = corrected.changed(full_steps=(0, 9), steps=50).check(replace(FACTS, latent=(12, 36)))
    (repaired,) = [f for f in calibrated if f.rule == "more-than-the-latent"]
    assert repaired.repair == "full steps correct nothing; calibrate again"
