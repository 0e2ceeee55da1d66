"""The noise floor of a tiny model: what it finds, that it leaves the model alone, and when it is dropped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.calibration.quant.floor import NoiseFloor, measure_floor
from stack.calibration.quant.recording import evenly, record_calls
from tests.conftest import PROMPT, picture, tiny_pipe

OTHER = "a green circle in the top on a white background"
STEPS = 6


def quantized(scheme: str = "int8", **options: object) -> Stack:
    return Stack(tiny_pipe(), steps=STEPS).quantize(scheme, **options)


@pytest.fixture(scope="module")
def floors() -> dict[str, NoiseFloor]:
    """Of dynamic int8, and of int8 weights alone."""
    return {
        scheme: quantized(scheme).noise_floor([PROMPT, OTHER], steps=3, progress=False)
        for scheme in ("int8", "int8-weight")
    }


def test_every_feature_has_a_split_at_every_sigma(floors: dict[str, NoiseFloor]) -> None:
    floor = floors["int8"]
    assert set(floor.features) == {"output", "last hidden state", "whole residual", "block 0", "block 1"}
    assert len(floor.sigmas) == 3 and floor.sigmas[0] == 1 and list(floor.sigmas) == sorted(floor.sigmas, reverse=True)
    for splits in floor.features.values():
        assert len(splits) == 3
        for split in splits:
            assert 1e-4 < split.total < 0.1
            assert split.random**2 + split.bias**2 == pytest.approx(split.total**2)
            assert 0 < split.uncertainty < split.total


def test_rounding_rows_on_the_fly_is_what_makes_errors_random(floors: dict[str, NoiseFloor]) -> None:
    """A rounded weight errs alike on neighbouring inputs; rounded activations do not."""
    weight, dynamic = (floors[scheme].features["output"] for scheme in ("int8-weight", "int8"))
    for fixed, moving in zip(weight, dynamic, strict=True):
        assert fixed.random < 0.2 * fixed.bias
        assert moving.random > 5 * fixed.random
        assert moving.bias == pytest.approx(fixed.bias, rel=1.0)


def test_total_is_the_plain_relative_error() -> None:
    """Against the two models run side by side on the recorded calls, without any neighbour."""
    stack = quantized("int8-weight")
    floor = measure_floor(stack, [PROMPT], 0, 2, 2, progress=False, nearness=1e-4)
    calls = record_calls(stack, [PROMPT], 0, 2)
    plain = [call.run(stack) for call in calls]
    with stack:
        rounded = [call.run(stack) for call in calls]
    for split, f, q in zip(floor.features["output"], plain, rounded, strict=True):
        assert split.total == pytest.approx(float((q - f).norm() / f.norm()), rel=0.01)


def test_the_model_is_left_as_it_was_and_a_stack_on_it_stays_on() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).quantize("int8").cache("svd", interval=3, warmup=2)
    stack.noise_floor([PROMPT], steps=2, neighbours=2, progress=False)
    assert not stack.applied and torch.equal(picture(pipe, STEPS), before)
    stack.apply()
    rounded = picture(stack, STEPS)
    stack.noise_floor([PROMPT], steps=2, neighbours=2, progress=False)
    assert stack.applied and torch.equal(picture(stack, STEPS), rounded)


def test_it_is_dropped_when_what_it_depends_on_changes() -> None:
    stack = quantized().cache("svd", interval=3, warmup=2)
    assert stack.floor is None
    floor = stack.noise_floor([PROMPT], steps=2, neighbours=2, progress=False)
    assert stack.floor is floor and floor.depends["quantized_by"] == "native"
    stack.replace(Cache("svd", interval=2, warmup=2))
    assert stack.floor is floor, "a cache changes nothing that quantization does"
    stack.replace(replace(stack.passes[0], skip=("*.to_q",)))
    assert stack.floor is None
    stack.replace(replace(stack.passes[0], skip=()))
    assert stack.floor is floor, "what it was measured under is there again"


def test_json_round_trip_and_plot(floors: dict[str, NoiseFloor], tmp_path: Path) -> None:
    floor = floors["int8"]
    assert NoiseFloor.from_json(floor.to_json()) == floor
    floor.save_plot(tmp_path / "floor.png")
    assert (tmp_path / "floor.png").read_bytes()[:4] == b"\x89PNG"
    for text in ("{}", "[]", "no", '{"features": {"a": [{"b": 1}]}}'):
        with pytest.raises(StackError, match="expected the JSON of a noise floor"):
            NoiseFloor.from_json(text)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(StackError, match=r"add \.quantize\(\), \.sage_attn\(\) or \.sparse_attn\(\)"):
        Stack(tiny_pipe()).noise_floor([PROMPT])
    with pytest.raises(StackError, match="2 or more neighbours"):
        quantized().noise_floor([PROMPT], neighbours=1)
    with pytest.raises(StackError, match="at least 1 prompt and 1 step, got 0 prompts"):
        quantized().noise_floor([])
    with pytest.raises(StackError, match="got a bare denoiser"):
        Stack(tiny_pipe().transformer).quantize("int8").noise_floor([PROMPT])


def test_steps_are_spread_evenly() -> None:
    assert evenly(6, 50) == {0, 10, 20, 29, 39, 49}
    assert evenly(1, 50) == {0} and evenly(9, 4) == {0, 1, 2, 3}


def test_a_cache_in_the_stack_is_told_the_random_part() -> None:
    stack = Stack(tiny_pipe(), steps=14).quantize("int8").cache("svd")
    floor = stack.noise_floor([PROMPT], steps=3, progress=False)
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    assert cache.policy.noise == floor.random("last hidden state")
    assert [sigma for sigma, _ in cache.policy.noise] == list(floor.sigmas)
    assert all(
        error == split.random
        for (_, error), split in zip(cache.policy.noise, floor.features["last hidden state"], strict=True)
    )


def test_sparse_attention_errs_alike_on_neighbours_and_not_at_all_on_its_dense_steps() -> None:
    stack = Stack(tiny_pipe(size=32), steps=12).sparse_attn(0.5, even_if_slower=True)
    floor = stack.noise_floor([PROMPT], steps=3, neighbours=3, progress=False)
    first, middle, last = floor.features["output"]
    assert first.total == last.total == 0
    assert middle.bias > 1e-4 and middle.random < 0.2 * middle.bias
    assert stack.floor is floor and "keep=0.5" in floor.depends["sparse_attn"]
    stack.replace(replace(stack.passes[0], keep=0.75))
    assert stack.floor is None


def test_both_approximations_are_measured_together() -> None:
    def worst(stack: Stack) -> float:
        return stack.noise_floor([PROMPT], steps=3, neighbours=2, progress=False).features["output"][1].total

    rounded, dropped = Stack(tiny_pipe(size=32), steps=12).quantize("int8"), Stack(tiny_pipe(size=32), steps=12)
    apart = worst(rounded), worst(dropped.sparse_attn(0.5, even_if_slower=True))
    both = worst(Stack(tiny_pipe(size=32), steps=12).quantize("int8").sparse_attn(0.5, even_if_slower=True))
    assert both == pytest.approx(sum(error**2 for error in apart) ** 0.5, rel=0.5) and both > max(apart)


def test_a_cache_inside_the_blocks_is_told_the_noise_of_what_they_add() -> None:
    stack = Stack(tiny_pipe(), steps=14).quantize("int8").cache("taylorseer-published")
    floor = stack.noise_floor([PROMPT], steps=3, progress=False)
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    blocks = [floor.features[f"block {number}"] for number in range(2)]
    wanted = [math.sqrt(sum(splits[i].random ** 2 for splits in blocks) / 2) for i in range(3)]
    assert [error for _, error in cache.policy.noise] == pytest.approx(wanted)
    assert floor.at_site("output") == floor.random("output") and floor.at_site("blocks") == cache.policy.noise
    ran = stack.plan.passes()[-1].policy
    assert ran.forecast == replace(cache.policy.forecast, basis="newton", order=2)
    assert ran.noise == cache.policy.noise
    assert f"from measured features: about {max(wanted):.1%} is noise" in stack.explain()
