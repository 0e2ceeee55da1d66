"""Rectified flow on drawn scenes: the loss, and the shift that goes with a resolution."""

from __future__ import annotations

import math
import random

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stack.reference.pipeline import PATCH, ShapesFluxPipeline, image_ids, patchify
from stack.reference.prompt import PromptEncoder, tokenize_scenes
from stack.reference.scenes import draw, sample
from stack.reference.shapes_flux import SCHEDULE, new_scheduler

from .levels import noised, shifted_sigmas
from .shapes_flux import new_prompt_encoder, new_transformer
from .task import Stage, Task

STAGES = (
    Stage(size=16, batch=32, samples=36_000, lr=1e-3),
    Stage(size=32, batch=8, samples=12_700, lr=7e-4),
    Stage(size=64, batch=8, samples=6_000, lr=6e-4, crop=32),
    Stage(size=64, batch=4, samples=1_200, lr=4e-4),
)


class FlowLearner(nn.Module):
    """Denoiser and prompt encoder, trained together."""

    def __init__(self, transformer: FluxTransformer2DModel, prompt_encoder: PromptEncoder):
        super().__init__()
        self.transformer, self.prompt_encoder = transformer, prompt_encoder


def new_learner() -> FlowLearner:
    """Untrained; the output projection starts at zero, so that the first prediction is the mean velocity."""
    torch.manual_seed(0)
    learner = FlowLearner(new_transformer(), new_prompt_encoder())
    nn.init.zeros_(learner.transformer.proj_out.weight)
    return learner


def shift_at(tokens: int) -> float:
    """FLUX's schedule shift s for a number of image tokens: exp(mu), mu linear in the tokens."""
    low, high = SCHEDULE["base_image_seq_len"], SCHEDULE["max_image_seq_len"]
    slope = (SCHEDULE["max_shift"] - SCHEDULE["base_shift"]) / (high - low)
    return math.exp(SCHEDULE["base_shift"] + slope * (tokens - low))


def flow_loss(learner: FlowLearner, stage: Stage, rng: random.Random) -> torch.Tensor:
    """Mean squared error of the predicted velocity (noise - picture) on one fresh batch."""
    device = learner.transformer.device
    scenes = [sample(rng) for _ in range(stage.batch)]
    clean, positions = _window(draw(scenes, stage.size, rng), stage, rng)
    clean = patchify(clean).to(device)
    embeds, pooled = learner.prompt_encoder(tokenize_scenes(scenes).to(device))
    shift = shift_at(stage.tokens)
    sigma = shifted_sigmas(torch.randn(stage.batch, device=device), shift)
    noisy, target = noised(clean, sigma)
    velocity = learner.transformer(
        hidden_states=noisy,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=sigma,
        img_ids=positions.to(device),
        txt_ids=torch.zeros(embeds.shape[1], 3, device=device),
        return_dict=False,
    )[0]
    return (velocity.float() - target).square().mean()


def _window(pictures: torch.Tensor, stage: Stage, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of the pictures to train on, and the rotary positions of its tokens on the whole canvas."""
    side, part = stage.size // PATCH, (stage.crop or stage.size) // PATCH
    top, left = rng.randint(0, side - part), rng.randint(0, side - part)
    ids = image_ids(side, side).reshape(side, side, 3)[top : top + part, left : left + part]
    rows, columns = (slice(PATCH * start, PATCH * (start + part)) for start in (top, left))
    return pictures[..., rows, columns], ids.reshape(-1, 3)


def pipeline(learner: FlowLearner, stage: Stage) -> ShapesFluxPipeline:
    """The learner's weights as a pipeline that draws at a stage's size."""
    model, encoder = learner.transformer.eval(), learner.prompt_encoder.eval()
    return ShapesFluxPipeline(new_scheduler(), model, encoder, size=stage.size)


TASK = Task(STAGES, new_learner, flow_loss, pipeline)
