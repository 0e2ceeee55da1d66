"""`python -m training.evaluate --model shapes-flux`: how much of what prompts ask for is in the pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from stack.reference.load import MODELS, Reference, SceneReader, load, load_reader, reference
from stack.reference.scenes import sample

HELD_OUT_SEED = 20_000  # scenes are drawn afresh from this seed; training draws from another stream


def held_out_scenes(count: int, draw_one: Callable[[random.Random], Any] = sample) -> list[Any]:
    """The first `count` evaluation scenes of a kind; always the same."""
    rng = random.Random(HELD_OUT_SEED)
    return [draw_one(rng) for _ in range(count)]


@torch.no_grad()
def scores(
    pipe: Any,
    reader: SceneReader,
    model: Reference,
    prompts: int = 64,
    steps: int = 50,
    seed: int = 0,
    batch: int = 4,
) -> dict[str, float]:
    """Share of what prompts ask for that the reader finds in what was drawn: by question, and in all as "accuracy"."""
    scenes = held_out_scenes(prompts, model.sample)
    found: dict[str, list[bool]] = {name: [] for name in model.asked}
    for start in track(range(0, prompts, batch), description=f"{prompts} prompts, {steps} steps"):
        part = scenes[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        texts = [model.prompt(scene) for scene in part]
        (pictures,) = pipe(texts, num_inference_steps=steps, generator=generators, output_type="pt", return_dict=False)
        for seen, scene in zip(reader.read(pictures.float() * 2 - 1), part, strict=True):
            answers = model.answers(scene)
            for name, hits in found.items():
                hits.append(seen[name] == answers[name])
    shares = {name: sum(hits) / len(hits) for name, hits in found.items()}
    return {**shares, "accuracy": sum(shares.values()) / len(shares)}


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(MODELS)}")] = "shapes-flux",
    prompts: Annotated[int, typer.Option(min=1)] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    seed: int = 0,
) -> None:
    """Print the share of asked-for attributes that the reader finds in the model's pictures."""
    for name, share in scores(load(model), load_reader(model), reference(model), prompts, steps, seed).items():
        Console().print(f"{name:14} {share:.3f}")


if __name__ == "__main__":
    typer.run(main)
