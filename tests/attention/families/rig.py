"""A tiny untrained denoiser of every family, long enough to have blocks to drop, and calls of it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel

from stack import Stack
from stack.models.schedule import uniform
from training.shapes_dit import TRANSFORMER as DIT

from ...conftest import inputs, tiny_denoiser
from ...models.test_hunyuan_video import tiny_denoiser as tiny_video

STEPS = 10
NAMES = ("flux", "dit", "hunyuan-video")
HIDDEN = 4  # of nine words of the first caption, where there is a mask
TOKENS = {"flux": (324, 16), "dit": (256, 0), "hunyuan-video": (512, 9)}
EXACT = 2e-5


def denoiser(name: str) -> Any:
    if name == "flux":
        return tiny_denoiser()
    if name == "hunyuan-video":
        return tiny_video(num_layers=1, num_single_layers=1)
    torch.manual_seed(0)
    return DiTTransformer2DModel(**{**DIT, "num_layers": 2, "num_attention_heads": 2}).eval()


def given(name: str, sigma: float, batch: int = 1, masked: bool = True) -> dict[str, Any]:
    """Arguments of one call; every sample of the batch is another one."""
    if name == "flux":
        return inputs(sigma, side=18, batch=batch)
    generator = torch.Generator().manual_seed(3)
    if name == "dit":
        pictures = torch.randn(batch, 3, 32, 32, generator=generator)
        when = torch.full((batch,), sigma * 1000)
        return {"hidden_states": pictures, "timestep": when, "class_labels": torch.arange(batch)}
    mask = torch.ones(batch, 9)
    if masked:
        mask[0, -HIDDEN:] = 0
    return {
        "hidden_states": torch.randn(batch, 3, 4, 64, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 9, 64, generator=generator),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(batch, 128, generator=generator),
        "timestep": torch.full((batch,), sigma * 1000),
    }


def sample(arguments: dict[str, Any], i: int) -> dict[str, Any]:
    """One sample of such a call."""
    return {name: x if name.endswith("_ids") else x[i : i + 1] for name, x in arguments.items()}


def stack_of(name: str, keep: float = 0.5, **options: Any) -> Stack:
    """Sparse attention on such a denoiser, wherever the steps allow it."""
    return Stack(denoiser(name), steps=STEPS).sparse_attn(keep, even_if_slower=True, **options)


@torch.no_grad()
def steps(stack: Stack, calls: dict[float, dict[str, Any]]) -> list[torch.Tensor]:
    """Outputs of calls, by their noise level."""
    return [stack(**call, return_dict=False)[0] for call in calls.values()]


def request(name: str, batch: int = 1, count: int = 4) -> dict[float, dict[str, Any]]:
    """The first calls of a request, all at one latent: noise level to arguments."""
    return {sigma: given(name, sigma, batch) for sigma in uniform(STEPS).sigmas[:count]}
