"""`python -m stack.reference.evaluate shapes-flux`: how much of what prompts ask for is in the pictures."""

from __future__ import annotations

import random
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from .classifier import ATTRIBUTES, SceneClassifier, asked
from .load import load, load_classifier
from .pipeline import ShapesFluxPipeline
from .scenes import Scene, sample

HELD_OUT_SEED = 20_000  # scenes are drawn afresh from this seed; training draws from another stream


def held_out_scenes(count: int) -> list[Scene]:
    """The first `count` evaluation scenes; always the same."""
    rng = random.Random(HELD_OUT_SEED)
    return [sample(rng) for _ in range(count)]


@torch.no_grad()
def scores(
    pipe: ShapesFluxPipeline, reader: SceneClassifier, prompts: int = 64, steps: int = 50, seed: int = 0, batch: int = 4
) -> dict[str, float]:
    """Accuracy of generated pictures as the reader sees them: by question, and over all under "accuracy"."""
    scenes = held_out_scenes(prompts)
    found: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for start in track(range(0, prompts, batch), description=f"{prompts} prompts, {steps} steps"):
        part = scenes[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        captions = [scene.caption() for scene in part]
        pictures = pipe(captions, num_inference_steps=steps, generator=generators, output_type="pt").images
        for seen, scene in zip(reader.read(pictures.float() * 2 - 1), part, strict=True):
            for name, value in asked(scene).items():
                found[name].append(seen[name] == value)
    shares = {name: sum(hits) / len(hits) for name, hits in found.items()}
    return {**shares, "accuracy": sum(shares.values()) / len(shares)}


def main(
    model: str = "shapes-flux",
    prompts: Annotated[int, typer.Option(min=1)] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    seed: int = 0,
) -> None:
    """Print the share of asked-for attributes that the reader finds in the model's pictures."""
    for name, share in scores(load(model), load_classifier(), prompts, steps, seed).items():
        Console().print(f"{name:14} {share:.3f}")


if __name__ == "__main__":
    typer.run(main)
