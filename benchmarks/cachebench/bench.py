"""What every part of the cache benchmark is told: the model, how it is asked, and how a picture is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stack.caching.schedules import Interval
from stack.compare.compare import captions
from stack.loading import load_pipeline

Run = Callable[..., Any]
WARMUP = 3  # full steps at the start of every interval schedule here, ours and theirs
# Prompts that schedules, gates and control steps are searched on, and held out. Two to search on are too few: with two,
# svd at 9 full steps of shapes-flux has 42.4 dB on the pictures measured, with four 45.4. Where a small change sends a
# picture's layout elsewhere, it takes more yet; pictures of that model are cheap.
FIT = (4, 2)
MANY = {"shapes-dit": (8, 4)}


@dataclass
class Bench:
    """One reference model and the protocol its rows are measured by.

    Attributes:
        steps: of the base.
        counts: numbers of full steps at which caches are compared.
        rounds: how often each row is timed; prompts rotate.
        weights: a pipeline's folder in place of the shipped weights; None for these.
        trials: finished batches that a calibration, and the search of a control, may look at.
    """

    model: str
    steps: int
    counts: tuple[int, ...]
    prompts: int
    rounds: int
    seed: int
    trials: int
    weights: Path | None = None
    pipe: Any = field(init=False)

    def __post_init__(self) -> None:
        self.pipe = self.load()

    def load(self, dtype: torch.dtype | None = None) -> Any:
        """A pipeline of its own, in the machine's fastest dtype or another."""
        return load_pipeline(str(self.weights) if self.weights else self.model, dtype)

    @property
    def texts(self) -> list[str]:
        """The prompts measured on."""
        return captions(self.prompts, seed=5, model=self.model)

    @property
    def fit_texts(self) -> list[str]:
        """Other prompts, for whatever is fitted or searched; none of them is measured on."""
        needed = sum(self.fitted_on)
        drawn = captions(needed + self.prompts + 1, seed=77, model=self.model)[1:]
        return [text for text in drawn if text not in self.texts]

    @property
    def fitted_on(self) -> tuple[int, int]:
        """How many prompts are searched on, and held out."""
        return MANY.get(self.model, FIT)

    def fitting(self) -> tuple[list[str], list[str]]:
        """Prompts to search on and to hold out."""
        searched, held = self.fitted_on
        return self.fit_texts[:searched], self.fit_texts[searched : searched + held]

    def protocol(self) -> dict[str, Any]:
        """What figures depend on: records of different protocols do not mix."""
        weights = str(self.weights.name) if self.weights else "shipped"
        return {
            "model": self.model, "steps": self.steps, "counts": list(self.counts), "prompts": self.texts,
            "seed": self.seed, "weights": weights,
        }  # fmt: skip


def pictures(run: Run, texts: str | list[str], steps: int, seed: int) -> torch.Tensor:
    """Pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1], each from its own seed, counted up from `seed`."""
    count = 1 if isinstance(texts, str) else len(texts)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    made = run(texts, num_inference_steps=steps, generator=generators, output_type="pt")[0]
    return torch.as_tensor(made).detach().float().cpu()


def interval_for(full: int, steps: int, warmup: int = WARMUP) -> int:
    """The interval whose schedule comes closest to this many full steps; the shortest of several."""
    return min(range(1, steps + 1), key=lambda n: abs(len(Interval(n, warmup).full_steps(steps)) - full))
