"""What every part of the cache benchmark is told: the model, how it is asked, and how a picture is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stack.caching.schedules import Interval
from stack.core.errors import StackError
from stack.loading import load
from stack.reference.captions import captions

Run = Callable[..., Any]
WARMUP = 3  # full steps at the start of every interval schedule here, ours and theirs
# Prompts that schedules, gates and control steps are searched on, and held out. Two to search on are too few: with two,
# svd at 9 full steps of shapes-flux has 42.4 dB on the pictures measured, with four 45.4. Where a small change sends a
# picture's layout elsewhere, it takes more yet; pictures of that model are cheap.
FIT = (4, 2)
MANY = {"shapes-dit": (8, 4)}
# Seeds of the judged pictures, counted up from the first, and of whatever is fitted, searched or held out.
JUDGED_SEED, FIT_SEED, HELD_SEED = 20_000, 1000, 11_000
JUDGED_TEXTS, FIT_TEXTS = 2026, 77  # what captions are drawn with
BATCH = 8  # pictures at once when they are judged; timed ones are made alone


@dataclass
class Bench:
    """One reference model and the protocol its rows are measured by.

    Attributes:
        steps: of the base.
        counts: numbers of full steps at which caches are compared.
        prompts: how many are judged, each with a seed of its own.
        rounds: how often each row is timed; prompts rotate.
        weights: a pipeline's folder in place of the shipped weights; None for these.
        trials: finished batches that a calibration, and the search of a control, may look at.
    """

    model: str
    steps: int
    counts: tuple[int, ...]
    prompts: int
    rounds: int
    trials: int
    weights: Path | None = None
    pipe: Any = field(init=False)

    def __post_init__(self) -> None:
        self._keep_apart()
        self.pipe = self.load()

    def _keep_apart(self) -> None:
        """What is judged was seen by nothing that is fitted, searched or calibrated.

        Raises:
            StackError: the model knows too few captions.
        """
        fitted = len(self.fit_texts)
        if fitted < sum(self.fitted_on) or len(set(self.texts)) < self.prompts:
            raise StackError(
                f"{self.prompts} judged prompts leave {fitted} of {self.model} to fit on: expected "
                f"{sum(self.fitted_on)}, try fewer --prompts"
            )
        judged, fit = set(self.seeds), {first + i for first in (FIT_SEED, HELD_SEED) for i in range(1000)}
        assert not judged & fit and not set(self.texts) & set(self.fit_texts), "judged on what was fitted"

    def load(self, dtype: torch.dtype | None = None) -> Any:
        """A pipeline of its own, in the machine's fastest dtype or another."""
        return load(str(self.weights) if self.weights else self.model, dtype)

    @property
    def texts(self) -> list[str]:
        """The judged prompts. The example that `captions` begins with is everywhere, and left out."""
        return captions(self.prompts + 1, seed=JUDGED_TEXTS, model=self.model)[1:]

    @property
    def seeds(self) -> range:
        """The seeds of the judged pictures, one per prompt."""
        return range(JUDGED_SEED, JUDGED_SEED + self.prompts)

    @property
    def fit_texts(self) -> list[str]:
        """Other prompts, for whatever is fitted or searched; none of them is judged."""
        drawn = captions(sum(self.fitted_on) + self.prompts + 1, seed=FIT_TEXTS, model=self.model)[1:]
        return [text for text in drawn if text not in self.texts]

    @property
    def fitted_on(self) -> tuple[int, int]:
        """How many prompts are searched on, and held out."""
        return MANY.get(self.model, FIT)

    def fitting(self) -> tuple[list[str], list[str]]:
        """Prompts to search on and to hold out."""
        searched, held = self.fitted_on
        return self.fit_texts[:searched], self.fit_texts[searched : searched + held]

    @property
    def usual(self) -> int:
        """The number of full steps of what is shown at one number only: the second of `counts`, 9 by default."""
        return self.counts[min(1, len(self.counts) - 1)]

    def protocol(self) -> dict[str, Any]:
        """What figures depend on: records of different protocols do not mix."""
        weights = str(self.weights.name) if self.weights else "shipped"
        searched, held = self.fitting()
        return {
            "model": self.model, "steps": self.steps, "counts": list(self.counts), "prompts": self.texts,
            "seeds": list(self.seeds), "batch": BATCH, "fitted_on": [*searched, *held],
            "fitted_seeds": [FIT_SEED, HELD_SEED], "weights": weights,
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
