"""Finished pictures of each scheme: PSNR against the model's own, and how many asked-for attributes are found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from stack import Stack
from stack.measure.metrics import psnr
from stack.reference.load import REFERENCES, load_reader

from .denoisers import Variant


@torch.no_grad()
def measure_pictures(
    name: str, pipe: Any, variants: Sequence[Variant], prompts: int, steps: int
) -> dict[str, dict[str, float]]:
    """PSNR and accuracy by variant; the same seeds for all. Compiled variants and quanto's are left out."""
    known, reader = REFERENCES[name], load_reader(name)
    scenes = [known.sample(random.Random(seed)) for seed in range(prompts)]
    texts = [known.prompt(scene) for scene in scenes]

    def draw(run: Any) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(1000 + i) for i in range(prompts)]
        each = zip(texts, seeds, strict=True)
        made = [run(t, num_inference_steps=steps, generator=g, output_type="pt") for t, g in each]
        return torch.cat([(m.frames if name == "shapes-video" else m.images).float() for m in made])

    def accuracy(pictures: torch.Tensor) -> float:
        return reader.accuracy(pictures * 2 - 1, scenes, known.asked)

    wanted = draw(pipe)
    found = {"eager": {"psnr": psnr(wanted, wanted), "accuracy": accuracy(wanted)}}
    for variant in variants:
        if variant.scheme and not variant.compiled:
            with Stack(pipe, steps=steps).quantize(variant.scheme, backend=variant.backend) as stack:
                got = draw(stack)
            found[variant.name] = {"psnr": psnr(got, wanted), "accuracy": accuracy(got)}
    return found
