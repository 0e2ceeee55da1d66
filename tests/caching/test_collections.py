"""Control residuals and IP-adapters under every cache: full steps are the model's own, alone and in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.caching.methods import PRESETS

from ..compat.changing import STEPS, Call, Scene, drawn, flux, flux_call, flux_with_image, with_image_call
from ..wirings import FLUX
from .fitted import KINDS, fitted

EAGER: dict[str, dict[str, Any]] = {
    "prefix": {"threshold": 0.01},
    "polynomial": {"threshold": 0.5},
    "sum": {"threshold": 0.15},
    "draft": {"accept": (0.05, 1.0, 0.05)},
}
MODELS = {"residuals": (flux, flux_call), "an image": (flux_with_image, with_image_call)}
# A cached step of these predicts every module: what an IP-adapter adds must be among it.
CLOSE = ("fora-published", "taylorseer-published", "hicache-published", "rfc", "pab-published")


def doubled(value: Any, seed: int = 0) -> Any:
    """A batch of this sample and another."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value + 0.5 * drawn(*value.shape, seed=30 + seed)])
    if isinstance(value, list):
        return [doubled(x, i) for i, x in enumerate(value)]
    return {name: doubled(x) for name, x in value.items()} if isinstance(value, dict) else value


def batch_of_two(call: Call) -> Call:
    return {name: value if "ids" in name else doubled(value, len(name)) for name, value in call.items()}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", KINDS)
@torch.no_grad()
def test_full_steps_are_the_models_own(preset: str, model: str, batch: int) -> None:
    make, call = MODELS[model]
    scene = Scene(make(), call() if batch == 1 else batch_of_two(call()))
    options = fitted(preset, FLUX, 4, 128, STEPS) | EAGER.get(PRESETS[preset].options()["gate"], {})
    plain = [scene.call(step) for step in range(STEPS)]
    with Stack(scene.denoiser, steps=STEPS).cache(preset, **options) as stack:
        got = [scene.call(step) for step in range(STEPS)]
        kinds = [record.kind for record in stack.report().steps]
    assert len(kinds) == STEPS
    for step, kind in enumerate(kinds):
        behind_cached = {*kinds[:step]} > {"full"}
        if kind == "full" and not (PRESETS[preset].corrected and behind_cached):
            torch.testing.assert_close(got[step], plain[step], rtol=1e-4, atol=1e-5)
    if preset in CLOSE:
        assert {"cached", "partial"} & {*kinds}
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(got, plain, strict=True))
        assert worst < 0.22, worst  # without the image's part 0.26 and more
