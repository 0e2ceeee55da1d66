"""A stack on diffusers' own FluxPipeline: VAE, embedded guidance, precomputed prompt embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from stack import Stack

STEPS = 14


@pytest.fixture(scope="module")
def flux() -> Any:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, layers_per_block=1, shift_factor=0.1
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, vae, None, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(run: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(1, 24, 32, generator=generator)
    pooled = torch.randn(1, 32, generator=generator)
    return run(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="pt",
    ).images


def test_every_pass_runs_and_comes_off(flux: Any) -> None:
    before = image(flux)
    stack = Stack(flux, steps=STEPS).quantize("int8", min_features=64).sparse_attn(keep=0.5).cache("svd", interval=4)
    assert stack.facts.guidance == "embedded"
    assert stack.facts.text_tokens == 512
    fast = image(stack)
    assert stack.report().full_steps == 5
    relative = (fast - before).norm() / before.norm()
    assert 0 < relative < 0.2
    times = [record.sigma for record in stack.report().steps]
    assert times == pytest.approx(flux.scheduler.sigmas[:-1].tolist())
    stack.undo()
    assert torch.equal(image(flux), before)
