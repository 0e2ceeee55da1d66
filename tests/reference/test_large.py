"""`shapes-flux-128`: the weights of 64 x 64 pixels at 128 x 128."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stack import Stack
from stack.reference.load import load, load_classifier
from stack.reference.pipeline import image_ids
from stack.reference.shapes_flux import SHARPER, for_128_pixels
from training.evaluate import held_out_scenes

from ..conftest import tiny_pipe


def test_attention_is_sharper_and_nothing_else_differs() -> None:
    small, large = (load(name, torch.float32) for name in ("shapes-flux", "shapes-flux-128"))
    assert large.config.size == 128 and small.config.size == 64
    others = dict(large.transformer.named_parameters())
    ratios = {name: weight / others[name] for name, weight in small.transformer.named_parameters()}
    scaled = [name for name, ratio in ratios.items() if not torch.equal(ratio.nan_to_num(1), torch.ones_like(ratio))]
    assert len(scaled) == 8 and all(name.endswith(("norm_q.weight", "norm_added_q.weight")) for name in scaled)


def test_every_logit_is_scaled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, logits = tiny_pipe(), []
    inner = F.scaled_dot_product_attention

    def seen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: object) -> torch.Tensor:
        logits.append(query @ key.transpose(-1, -2))
        return inner(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    latents, (embeds, pooled, texts) = torch.randn(1, 64, 12), pipe.encode_prompt("a red ring")
    for fit in (lambda plain: plain, for_128_pixels):
        fit(pipe).transformer(latents, embeds, pooled, torch.ones(1), image_ids(8, 8), texts)
    # The second layer already sees what the first one's other output made of the picture.
    torch.testing.assert_close(logits[2], SHARPER * logits[0])


@pytest.mark.parametrize(("size", "shift"), [(64, math.exp(1.1)), (128, 2 * math.exp(1.1))])
def test_twice_the_side_has_twice_the_shift(size: int, shift: float) -> None:
    pipe = for_128_pixels(tiny_pipe())
    pipe.set_progress_bar_config(disable=True)
    pipe("a red ring", num_inference_steps=2, output_type="latent", height=size, width=size)
    sigma = pipe.scheduler.sigmas[1].item()  # unshifted time 1/2
    assert sigma == pytest.approx(shift / (1 + shift), abs=1e-5)


def test_it_draws_what_it_is_asked_for() -> None:
    pipe, scene = load("shapes-flux-128"), held_out_scenes(2)[1]
    with Stack(pipe, steps=20).cache("predictor-corrector", count=4) as stack:
        drawn = stack(scene.caption(), generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert drawn.shape == (1, 3, 128, 128)
    # Without the sharpening the first shape of this scene is no triangle.
    assert load_classifier().accuracy(drawn * 2 - 1, [scene]) == 1.0
