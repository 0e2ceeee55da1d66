"""A pipeline around any denoiser, for what a bare one cannot show: a scheduler, and guidance in two calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from stack.models.small import Sizes

from .classes import flat, made

STEPS = 6


class LoopPipeline(DiffusionPipeline):
    """Calls a denoiser on example latents at the noise levels of its scheduler.

    What it returns moves no latent, so that classes whose output is not laid out as their latent run, too.
    """

    def __init__(self, transformer: Any, scheduler: FlowMatchEulerDiscreteScheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, name: str, branches: Sequence[int] = (0,), num_inference_steps: int = STEPS, num_frames: int = 1,
        height: int = 8, width: int = 8, max_sequence_length: int = 5,
    ) -> list[list[list[torch.Tensor]]]:  # fmt: skip
        """All outputs of every branch, step by step.

        Args:
            name: the class, whose example calls are made.
            branches: numbers of the example's samples; a step has one call for each.
        """
        self.scheduler.set_timesteps(num_inference_steps)
        outputs: list[list[list[torch.Tensor]]] = [[] for _ in branches]
        for step, t in enumerate(self.scheduler.timesteps):
            at = Sizes(noise=float(self.scheduler.sigmas[step]))
            for branch, found in zip(branches, outputs, strict=True):
                given = made(name).call(replace(at, first=branch))
                found.append(flat(self.transformer(**given, return_dict=False)))
            self.scheduler.step(torch.zeros(1), t, torch.zeros(1))
        return outputs


def loop_pipeline(name: str) -> LoopPipeline:
    return LoopPipeline(made(name).denoiser, FlowMatchEulerDiscreteScheduler(shift=3.0))
