"""Diffusion with classes on drawn scenes: the loss of the predicted velocity."""

from __future__ import annotations

import random

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from stack.reference.classes import NULL, label_of, sample_class
from stack.reference.dit_pipeline import ShapesDiTPipeline
from stack.reference.scenes import draw

from .levels import stratified_normal
from .shapes_dit import new_scheduler, new_transformer
from .task import Stage, Task

STAGES = (
    Stage(size=16, batch=16, samples=80_000, lr=1e-3),
    Stage(size=32, batch=8, samples=16_000, lr=8e-4),
)

DROPPED = 0.1  # share of the pictures whose class is hidden, which is how the unguided branch is learned


class DiTLearner(nn.Module):
    """The denoiser, and the noise levels it learns."""

    def __init__(self, transformer: DiTTransformer2DModel):
        super().__init__()
        # In training mode every block of diffusers' DiT hides the class by a draw of its own: it would nearly always
        # reach some block, and the null class be learned with the class in sight. Labels are hidden here instead.
        self.transformer = transformer.eval()
        self.scheduler = new_scheduler()


def new_learner() -> DiTLearner:
    """Untrained; blocks start as the identity and the output at zero (adaLN-Zero, Peebles & Xie 2023)."""
    torch.manual_seed(0)
    learner = DiTLearner(new_transformer())
    norms = [block.norm1 for block in learner.transformer.transformer_blocks]
    for linear in [*(norm.linear for norm in norms), learner.transformer.proj_out_2]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    for norm in norms:
        # By default classes are six times as loud as the time they are added to, and time is learned late.
        nn.init.normal_(norm.emb.class_embedder.embedding_table.weight, std=0.02)
    return learner


def velocity_loss(learner: DiTLearner, stage: Stage, rng: random.Random) -> torch.Tensor:
    """Mean squared error of the predicted velocity, sqrt(a) noise - sqrt(1 - a) picture, on one fresh batch.

    Timesteps are logit-normal (Esser et al. 2024, section 3.1), which favours the middle, where shapes are decided; and
    stratified: each picture of the batch has one of its equally likely parts of the schedule to itself.
    """
    device, count, steps = learner.transformer.device, stage.batch, learner.scheduler.config.num_train_timesteps
    scenes = [sample_class(rng) for _ in range(count)]
    clean = draw(scenes, stage.size, rng).to(device)
    labels = torch.tensor([label_of(scene) for scene in scenes], device=device)
    labels = labels.where(torch.rand(count, device=device) >= DROPPED, NULL)
    timesteps = (torch.sigmoid(stratified_normal(count, device)) * steps).long().clamp(max=steps - 1)
    noise = torch.randn_like(clean)
    noisy = learner.scheduler.add_noise(clean, noise, timesteps)
    velocity = learner.transformer(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
    return (velocity.float() - learner.scheduler.get_velocity(clean, noise, timesteps)).square().mean()


def pipeline(learner: DiTLearner, stage: Stage) -> ShapesDiTPipeline:
    """The learner's weights as a pipeline that draws at a stage's size."""
    return ShapesDiTPipeline(learner.transformer, learner.scheduler, size=stage.size)


TASK = Task(STAGES, new_learner, velocity_loss, pipeline)
