"""What the plan says a cache holds is what it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.cap import size_words
from stack.caching.forecast import Forecast
from stack.caching.memory import StateSize, state_size, tensors_of
from stack.caching.methods import PRESETS
from stack.caching.policy import Policy
from stack.caching.predictor import Predictor
from stack.core.plan import explain, make_plan
from training.shapes_flux import TRANSFORMER

from ..conftest import inputs, tiny_denoiser
from ..models.test_dit import tiny
from ..passes.test_fastcache import made_up
from ..test_plan import FACTS
from .fitted import KINDS

STEPS, RUN = 14, 6
MAPPED = ("fastcache-published", "fastcache-published-gate", "fastcache-published-tokens")
SHAPES_FLUX = replace(FACTS, lists=(2, 4), latent=(12, 12))


def flux() -> FluxTransformer2DModel:
    """Two double and two single blocks: the smallest that every preset fits on."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(**{**TRANSFORMER, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2})


def given(denoiser: Any, sigma: float) -> dict[str, torch.Tensor]:
    if not isinstance(denoiser, DiTTransformer2DModel):
        return inputs(sigma)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return {"hidden_states": noise, "timestep": torch.tensor([1000 * sigma]), "class_labels": torch.tensor([3])}


def peak(denoiser: Any, method: str, **options: Any) -> tuple[int, StateSize]:
    """The most that was held in a run of one sample and branch, and what was known of it."""
    with torch.no_grad(), Stack(denoiser, steps=STEPS).cache(method, **options) as stack:
        most = 0
        for step in range(RUN):
            stack(**given(denoiser, 1 - step / STEPS))
            most = max(most, stack.report().cache_bytes)
        untold = {} if stack.facts.image_tokens else {"image_tokens": 64, "text_tokens": 16, "grid": (8, 8)}
        known = state_size(stack.passes[0].policy, replace(stack.facts, **untold))
    assert known is not None
    return most, known


def options_of(method: str) -> dict[str, Any]:
    """Four full steps, then cached ones if it can."""
    if method in MAPPED:
        return {"maps": made_up(), "warmup": 4}
    more = {"ratios": (1.0,) * STEPS} if method.startswith("magcache") else {}
    wanted = {"warmup": 4, "interval": 2, "pace": "even", "threshold": 1.0, **more}
    return {name: value for name, value in wanted.items() if name in PRESETS[method].options()}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("make", [flux, lambda: tiny().transformer], ids=["flux", "dit"])
def test_what_is_held_was_known(method: str, make: Any) -> None:
    if method in MAPPED:
        make = tiny_denoiser  # the made-up maps are for this model
    elif PRESETS[method].corrected:
        make = flux  # a bare DiT does not tell its sampler
    most, known = peak(make(), method, **options_of(method))
    assert known.features * 0.98 <= most <= 1.02 * known.features + known.bases
    assert (known.bases > 0) == method.startswith("svd")


@pytest.mark.parametrize("method", ["svd-published", "taylorseer-published", "toca-published"])
def test_what_a_corrector_holds_was_known(method: str) -> None:
    most, known = peak(flux(), method, **options_of(method), corrected=True)
    without, _ = peak(flux(), method, **options_of(method))
    assert most - without == 2 * 64 * 12 * 4  # two latents in fp32
    assert known.features * 0.98 <= most <= 1.02 * known.features + known.bases


@pytest.mark.parametrize(
    "method", ["svd-published", "taylorseer-published", "reuse", "freqca-published", "predictor-corrector"]
)
def test_what_is_held_for_the_sake_of_noise_was_known(method: str) -> None:
    most, known = peak(flux(), method, **options_of(method), noise=((1.0, 0.01),))
    assert known.features * 0.98 <= most <= 1.02 * known.features + known.bases


@pytest.mark.parametrize(
    "method", ["fora-published", "taylorseer-published", "svd-published-blocks", "rfc-published", "hicache-published"]
)
def test_half_the_bits_are_half_the_bytes(method: str) -> None:
    whole, known = peak(flux(), method, **options_of(method))
    half, known_half = peak(flux(), method, **options_of(method), state_dtype="bfloat16")
    assert known_half.features * 2 == known.features and known_half.bases == known.bases
    bases = whole - known.features if known.bases else 0
    assert half - bases == pytest.approx((whole - bases) / 2, rel=0.001)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [{}, {"level": 0.5}, {"smoothing": 0.5}])
@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_tensors_of_every_forecast(order: int, more: dict[str, float], gains: tuple[float, float]) -> None:
    forecast = Forecast(order, gains, **more)
    policy = Policy.of(order=order, gains=gains, **more)
    predictor = Predictor(forecast, policy.split.new())
    for x in range(order + 3):
        predictor.update(torch.randn(1, 6, 4), 1 - 0.1 * x)
    bases = predictor.split.bytes if predictor.split else 0
    assert predictor.bytes - bases == tensors_of(forecast) * 6 * 4 * 4


def test_sizes_on_flux_itself() -> None:
    """FLUX.1-dev at 1,024 x 1,024: 19 double and 38 single blocks, 4,096 + 512 tokens of 3,072 numbers in bf16."""
    dev = replace(FACTS, dtype="bfloat16", blocks=57, width=3072, image_tokens=4096, text_tokens=512, lists=(19, 38))
    feature = 4608 * 3072 * 2

    def modules(method: str) -> tuple[int, int]:
        size = state_size(PRESETS[method], dev)
        assert size is not None and sum(unit.bytes for unit in size.units) == size.total
        return size.features, len(size.units)

    assert modules("fora-published") == ((2 * 19 + 38) * feature, 76)
    assert modules("taylorseer-published") == (3 * (2 * 19 + 38) * feature, 76)
    assert modules("pab-published") == (57 * feature, 57)
    assert state_size(PRESETS["svd-published"], dev) == StateSize(2 * 4096 * 3072 * 2, 128 * 3072 * 2)
    assert state_size(replace(PRESETS["svd-published"], state_dtype="float32"), dev) == StateSize(
        4 * 4096 * 3072 * 2, 128 * 3072 * 4
    )
    assert state_size(PRESETS["easycache-published"], replace(dev, latent=(64, 64))) == StateSize(4 * 4096 * 64 * 2)


def test_explain_says_so() -> None:
    text = explain(make_plan(SHAPES_FLUX, [Cache("rfc-published")]))
    # Modules: (2 * 2 + 4) * 1,040 tokens, 3 differences and the input; the first input: 3 of 1,024; 192 wide, 4 bytes.
    assert f"{(8 * 1040 * 4 + 3 * 1024) * 192 * 4 / 1e6:.1f} MB of state per picture and guidance branch" in text
    assert size_words(PRESETS["svd-published"], replace(SHAPES_FLUX, image_tokens=0)) == "state size unknown"


@pytest.mark.parametrize(
    ("options", "words"), [({"max_bytes": -1}, "at least 0"), ({"state_dtype": "int8"}, "unknown state_dtype")]
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Cache("svd-published", **options)
