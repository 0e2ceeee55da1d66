"""Rectified flow on drawn clips: stages of few frames and pixels first, at their places on the whole canvas."""

from __future__ import annotations

import random

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from stack.reference.clips import FRAMES, draw_clips, sample_clip
from stack.reference.prompt import VIDEOS, PromptEncoder
from stack.reference.video_pipeline import ShapesVideoPipeline

from .levels import noised, shifted_sigmas, stratified_normal
from .shapes_video import PATCH, SIZE, new_prompt_encoder, new_scheduler, new_transformer, shift_at
from .task import Stage, Task

STAGES = (
    Stage(size=16, frames=2, batch=16, samples=36_000, lr=1e-3),
    Stage(size=16, frames=FRAMES, batch=8, samples=8_000, lr=8e-4),
    Stage(size=32, frames=2, batch=8, samples=8_000, lr=7e-4),
    Stage(size=32, frames=FRAMES, batch=4, samples=2_500, lr=6e-4),
)


class CanvasRope(nn.Module):
    """Rotary tables of a part of the native clip, at any resolution: what is learned small stays true at full size.

    At the native size it is the model's own, which numbers tokens from 0 whatever they show.

    Attributes:
        first: frame that the part begins with.
    """

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope
        self.first = 0

    def forward(self, videos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines (tokens, 64) of videos (B, 3, F, H, W)."""
        side, stride = SIZE // PATCH, SIZE // videos.shape[-1]
        begin, frames = self.first // PATCH, videos.shape[2] // PATCH
        whole = self.rope(videos.new_empty(1, 1, FRAMES, SIZE, SIZE))
        grids = [table.unflatten(0, (FRAMES // PATCH, side, side)) for table in whole]
        return tuple(grid[begin : begin + frames, ::stride, ::stride].flatten(0, 2) for grid in grids)


class VideoLearner(nn.Module):
    """Denoiser and prompt encoder, trained together."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, prompt_encoder: PromptEncoder):
        super().__init__()
        self.transformer, self.prompt_encoder = transformer, prompt_encoder
        self.transformer.rope = CanvasRope(self.transformer.rope)


def new_learner() -> VideoLearner:
    """Untrained; blocks start as the identity and the output at zero (adaLN-Zero, Peebles & Xie 2023)."""
    torch.manual_seed(0)
    learner = VideoLearner(new_transformer(), new_prompt_encoder())
    model = learner.transformer
    norms = [norm for block in model.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    norms += [block.norm for block in model.single_transformer_blocks]
    for linear in [*(norm.linear for norm in norms), model.proj_out]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return learner


def video_loss(learner: VideoLearner, stage: Stage, rng: random.Random) -> torch.Tensor:
    """Mean squared error of the predicted velocity (noise - clip) on one fresh batch.

    A stage of fewer frames shows a window of the motion, which begins where a patch does; sigmas are stratified.
    """
    device = learner.transformer.device
    clips = [sample_clip(rng) for _ in range(stage.batch)]
    first = rng.randrange(0, FRAMES - stage.frames + 1, PATCH)
    clean = draw_clips(clips, stage.size, rng, range(first, first + stage.frames)).transpose(1, 2).to(device)
    embeds, pooled = learner.prompt_encoder(VIDEOS.tokens([clip.caption() for clip in clips]).to(device))
    sigmas = shifted_sigmas(stratified_normal(stage.batch, device), shift_at(stage.tokens))
    noisy, target = noised(clean, sigmas)
    learner.transformer.rope.first = first
    velocity = learner.transformer(
        hidden_states=noisy,
        timestep=sigmas * 1000,
        encoder_hidden_states=embeds,
        encoder_attention_mask=torch.ones(embeds.shape[:2], device=device),
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return (velocity.float() - target).square().mean()


def pipeline(learner: VideoLearner, stage: Stage) -> ShapesVideoPipeline:
    """The learner's weights as a pipeline that draws at a stage's size, from the beginning of the motion."""
    scheduler = new_scheduler(shift_at(stage.tokens))
    model, encoder = learner.transformer.eval(), learner.prompt_encoder.eval()
    return ShapesVideoPipeline(scheduler, model, encoder, size=stage.size, frames=stage.frames)


TASK = Task(STAGES, new_learner, video_loss, pipeline)
