"""Training of the reader: the classifier that names what a picture shows."""

from __future__ import annotations

import random

import torch
from rich.progress import track
from torch.nn import functional as F

from stack.reference.classifier import ATTRIBUTES, SceneClassifier, labels
from stack.reference.scenes import Scene, draw, sample

BATCH = 128
SIZES = (32, 64)


def _batch(rng: random.Random, size: int) -> tuple[torch.Tensor, list[Scene]]:
    scenes = [sample(rng) for _ in range(BATCH)]
    pictures = draw(scenes, size, rng)
    # Generated pictures are never as clean as drawn ones: read through noise and slightly wrong contrast as well.
    noise = torch.randn(pictures.shape) * rng.uniform(0, 0.2)
    return (pictures * rng.uniform(0.8, 1.1) + noise).clamp(-1, 1), scenes


def train_reader(updates: int = 500, seed: int = 1) -> SceneClassifier:
    """Train a reader from scratch on drawn scenes; a few minutes on two CPU cores."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    reader = SceneClassifier()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)
    for update in track(range(updates), description="reader"):
        pictures, scenes = _batch(rng, SIZES[update % len(SIZES)])
        losses = [F.cross_entropy(x, y) for x, y in zip(reader(pictures), labels(scenes).T, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        rates.step()
    return reader.eval()


@torch.no_grad()
def held_out_accuracy(reader: SceneClassifier, scenes: int = 1000, size: int = 64, seed: int = 999) -> dict[str, float]:
    """Share of right answers on drawings never trained on: by question, and in all under "accuracy"."""
    rng = random.Random(seed)
    drawn = [sample(rng) for _ in range(scenes)]
    logits = reader(draw(drawn, size, rng))
    truth = labels(drawn).T
    right = {n: (x.argmax(1) == y).float().mean().item() for n, x, y in zip(ATTRIBUTES, logits, truth, strict=True)}
    return {**right, "accuracy": sum(right.values()) / len(right)}
