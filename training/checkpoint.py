"""What a training run needs to go on where it stopped."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Progress:
    """How far a run has come: stage number, samples seen in it, updates in all, random state."""

    stage: int = 0
    samples: int = 0
    updates: int = 0
    seconds: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))


def save(path: Path, progress: Progress, **states: Any) -> None:
    """Write everything to `path` at once: a crash halfway leaves the previous checkpoint whole."""
    record = {**vars(progress), "rng": progress.rng.getstate(), "torch_rng": torch.get_rng_state(), **states}
    partial = path.with_suffix(".partial")
    torch.save(record, partial)
    partial.replace(path)


def load(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint back; restores torch's random state."""
    record = torch.load(path, map_location="cpu", weights_only=False)
    torch.set_rng_state(record.pop("torch_rng"))
    rng = random.Random()
    rng.setstate(record.pop("rng"))
    known = {name: record.pop(name) for name in ("stage", "samples", "updates", "seconds")}
    return Progress(**known, rng=rng), record
