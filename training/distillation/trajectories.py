"""The teacher's trajectories on disk: every state between noise and picture, for a stock of prompts.

The teacher is the model at all of its steps under our own predictor-corrector cache, which costs a quarter of the time
and stays within 46 dB of the uncached pictures: an order of magnitude below what a student of few steps can learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from stack.reference.load import Reference
from stack.stack import Stack

TRAINING_SEED = 77_000  # away from the stream that evaluation draws its scenes from
# Full steps of the teacher's cache, denser towards the end, where the picture's edges form.
FULL_STEPS = 12


@dataclass(frozen=True)
class Trajectories:
    """A batch of the teacher's trajectories.

    Attributes:
        states: (S + 1, B, ...) float16, from noise to the finished latents.
        sigmas: S + 1 noise levels, the last one 0.
        arguments: what else the denoiser is called with; tensors have the batch first, or no batch at all.
        time_scale: the denoiser's `timestep` over sigma.
    """

    states: torch.Tensor
    sigmas: tuple[float, ...]
    arguments: dict[str, Any]
    time_scale: float


class _Watch:
    """What the denoiser is called with, step by step."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []
        self.arguments: dict[str, Any] = {}
        self.timestep = 0.0

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.states:
            self.arguments = {k: v for k, v in kwargs.items() if k not in ("hidden_states", "timestep", "return_dict")}
            self.timestep = float(kwargs["timestep"].flatten()[0])
        self.states.append(kwargs["hidden_states"].to(torch.float16))


def teach(stack: Stack, texts: list[str], seeds: list[int]) -> Trajectories:
    """Run the teacher on a batch of prompts and keep every state."""
    watch = _Watch()
    handle = stack.denoiser.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        last = stack(texts, generator=generators, output_type="latent", return_dict=False)[0]
    finally:
        handle.remove()
    sigmas = tuple(float(sigma) for sigma in stack.pipe.scheduler.sigmas)
    states = torch.stack([*watch.states, last.to(torch.float16)])
    return Trajectories(states, sigmas, watch.arguments, watch.timestep / sigmas[0])


def prepare(pipe: Any, model: Reference, folder: Path, count: int, batch: int = 4, steps: int = 50) -> list[Path]:
    """Write `count` trajectories in files of one batch each; files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = random.Random(TRAINING_SEED), []
    full = tuple(round((steps - 1) * (1 - (1 - i / (FULL_STEPS - 1)) ** 2)) for i in range(FULL_STEPS))
    with Stack(pipe, steps=steps).cache("predictor-corrector", full_steps=full, steps=steps) as stack:
        for first in track(range(0, count, batch), description=f"{count} trajectories"):
            texts = [model.prompt(model.sample(rng)) for _ in range(batch)]
            file = folder / f"{first:06d}.pt"
            if not file.exists():
                seeds = [TRAINING_SEED + first + i for i in range(batch)]
                partial = file.with_suffix(".partial")
                torch.save(vars(teach(stack, texts, seeds)), partial)
                partial.replace(file)
            files.append(file)
    return files


def read(files: list[Path], rng: random.Random) -> Iterator[Trajectories]:
    """Batches without end, in a new order on every pass over the files."""
    while True:
        for file in rng.sample(files, len(files)):
            yield Trajectories(**torch.load(file, map_location="cpu", weights_only=True))
