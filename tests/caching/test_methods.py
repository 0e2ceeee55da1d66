"""Plain names are the best that is known; what papers publish keeps a name of its own."""

from __future__ import annotations

from statistics import median

import pytest
import torch

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.methods import PRESETS, is_reading, unlike_published
from stack.caching.policy import Policy
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.captions import captions

SCHEDULED = [name for name, policy in PRESETS.items() if policy.scheduled and not policy.site.decides]


@pytest.mark.parametrize("name", SCHEDULED)
def test_readings_are_even_and_plain_names_are_placed_and_corrected(name: str) -> None:
    policy = PRESETS[name]
    assert policy.corrected != is_reading(name)
    # Where attention alone is cached, every second step is full anyway.
    assert policy.schedule.even == (is_reading(name) or name == "pab")


def test_readings_are_what_was_published() -> None:
    assert PRESETS["svd-published"] == Policy()
    assert PRESETS["fora-published"] == Policy.of(site="per-module", order=0, gains=(0.0, 0.0), interval=3, warmup=1)
    taylor = Policy.of(site="per-module", order=2, gains=(1.0, 1.0), basis="taylor", coordinate="step")
    assert PRESETS["taylorseer-published"] == taylor
    assert PRESETS["first-block-published"] == Policy.of(
        site="residual", front=1, order=0, gains=(0.0, 0.0), gate="prefix", threshold=0.08, warmup=1
    )


def test_what_differs_is_said() -> None:
    assert unlike_published("svd") == "unlike svd-published: spread='by-noise', gains=(1.0, 1.0), corrected=True"
    assert unlike_published("svd-published") == "" == unlike_published("predictor-corrector")
    pipe = load("shapes-dit")
    assert unlike_published("svd") in Stack(pipe).cache("svd").explain()
    assert "unlike" not in Stack(pipe).cache("svd-published").explain()


def test_an_interval_means_these_steps_and_a_count_so_many() -> None:
    even = Cache("svd", interval=5, warmup=2)
    assert sorted(even.policy.schedule_for(20).full_steps(20)) == [0, 1, 6, 11, 16]
    for count in (3, 8):
        assert len(Cache("svd", count=count).policy.schedule_for(20).full_steps(20)) == count
    assert Cache("svd", gate="prefix", threshold=0.1).policy.corrected
    assert not Cache("svd", site="whole-model").policy.corrected


def test_the_default_beats_its_reading_and_plain_steps() -> None:
    """Median over pictures of `shapes-dit`: 7 of 24 steps in full."""
    pipe = load("shapes-dit")
    pipe.set_progress_bar_config(disable=True)
    prompts = captions(3, seed=61, model="shapes-dit")

    def pictures(run: object, steps: int = 24) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(700 + i) for i in range(len(prompts))]
        return run(prompts, num_inference_steps=steps, generator=seeds, output_type="pt")[0]  # type: ignore[operator]

    base = pictures(pipe)

    def quality(made: torch.Tensor) -> float:
        return median(psnr(a[None], b[None]) for a, b in zip(made, base, strict=True))

    found = {"plain": quality(pictures(pipe, 7))}
    for name, options in (("svd", {"count": 7}), ("svd-published", {"interval": 5, "warmup": 2}), ("teacache", {})):
        with Stack(pipe, steps=24).cache(name, **options) as stack:
            found[name] = quality(pictures(stack))
    assert found["svd"] > found["plain"] + 1.5 and found["svd"] > found["svd-published"] + 3, found
    assert found["teacache"] > found["plain"] + 3, found
