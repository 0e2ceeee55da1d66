"""An engine without a model: every row has its own cost and its own error, so that every figure is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from stack.comparison.loop import Measurement, measure
from stack.comparison.record import Header, build_record
from stack.comparison.rows import Generation, Row, plan_rows, share
from stack.measure.flops import Work
from stack.measure.quality import Judge, Metric

STEPS = 50
STAGES = ("quantize", "sparse_attn", "cache")
SECONDS = {
    "base": 10.0, "quantize": 8.0, "sparse_attn": 5.0, "cache": 2.0, "all": 1.0, "all-quantize": 1.5,
    "all-sparse_attn": 1.8, "all-cache": 4.0,
}  # fmt: skip
# A picture's error is a constant offset: PSNR is -20 log10 of it.
OFFSETS = {"quantize": 0.01, "sparse_attn": 0.02, "cache": 0.001, "all": 0.05, "all-cache": 0.03}
# How much brighter than the base, times the number of prompts: what a measure is given shows.
BRIGHTNESS = Metric(
    "brightness", "brightness", "lower", "sees only how bright",
    lambda: lambda pictures, reference, prompts: float((pictures - reference).mean()) * len(prompts),
)  # fmt: skip
PROMPTS = ("a red ring left of a blue star", "a green circle", "a cyan star")


@dataclass
class FakeEngine:
    """Counts what it is asked for; may be interrupted, and rows may fail."""

    multistep: bool = True
    pace: float = 1.0
    stop_after: int = 10**9
    failing: str = ""
    error: Exception = field(default_factory=lambda: RuntimeError("out of memory\nlong traceback"))
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    warmed: list[str] = field(default_factory=list)

    def warm_up(self, row: Row, prompt: str) -> None:
        self.warmed.append(row.name)

    def generate(self, row: Row, prompt: str, seed: int) -> Generation:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        if row.name == self.failing:
            raise self.error
        self.calls.append((row.name, prompt, seed))
        cached = "cache" in row.passes
        return Generation(
            picture=torch.linspace(0, 0.5, 3 * 16 * 16).reshape(3, 16, 16) + OFFSETS.get(row.name, 0.0) + 0.01 * seed,
            # Three prompts cost -1, 0 and +1 percent: the median is the middle one.
            seconds=SECONDS.get(row.name, 10.0 * row.steps / STEPS) * (1 + 0.01 * (seed % 3 - 1)),
            kinds=tuple("full" if not cached or i % 10 == 0 else "cached" for i in range(row.steps)),
            density=0.5 if "sparse_attn" in row.passes else 1.0,
            cache_bytes=4096 if cached else 0,
            sigmas=tuple(1 - i / row.steps for i in range(row.steps * bool(row.passes))),
            errors=tuple(
                0.01 + i / 1000 if cached and i in (10, 40) else None for i in range(row.steps * bool(row.passes))
            ),
            peak_bytes=10**6,
        )


Make = Callable[..., tuple[Measurement, dict[str, Any]]]


@pytest.fixture
def make_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def comparison() -> Make:
    """Runs the loop on a fake engine; gives the measurement and the record."""

    def make(
        engine: FakeEngine | None = None,
        recipes: dict[str, tuple[str, ...]] | None = None,
        effective: Callable[[Row], object] = lambda row: row.passes,
    ) -> Any:
        recipes = recipes or {"balanced": STAGES}
        measurement = measure(engine or FakeEngine(), share(plan_rows(recipes, STEPS), effective), PROMPTS, seed=0)
        header = Header("shapes-flux", "cpu", "float32", PROMPTS, STEPS, 0, tuple(recipes))
        record = build_record(header, measurement, Work(800, 200, 0), lambda pictures: 0.75, Judge([BRIGHTNESS]))
        record["base_mode"] = "eager"
        return measurement, record

    return make
