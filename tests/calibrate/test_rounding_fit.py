"""Rounding with feedback on a tiny model, whole: fitted, applied, saved, taken off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stack import Stack, StackError
from stack.calibration.quant.recording import record_calls
from stack.calibration.rounding_fit import in_portions, listening
from stack.quant.quantize import Quantize
from stack.recipe import parse_recipe
from tests.conftest import PROMPT, picture, tiny_pipe

PROMPTS = (
    PROMPT,
    "a green circle in the top on a white background",
    "a purple circle",
    "a cyan star on a navy background",
)
STEPS = 6


@pytest.fixture(scope="module")
def fitted() -> Stack:
    stack = Stack(tiny_pipe(), steps=STEPS).quantize("nf4", feedback=True)
    return stack.fit_rounding(PROMPTS, steps=2, progress=False)


def test_it_halves_the_error_of_nf4_in_the_same_bytes(fitted: Stack) -> None:
    uniform = Stack(fitted.pipe, steps=STEPS).quantize("nf4", backend="native")
    calls = record_calls(fitted, [PROMPT], 50, 2)
    wanted = [call.run(fitted) for call in calls]
    errors, sizes = [], []
    for stack in (uniform, fitted):
        with stack:
            got = [call.run(stack) for call in calls]
            sizes.append(stack.report().passes["quantize"]["weight_bytes"])
        errors.append(max(float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)))
    assert sizes[0] == sizes[1] and errors[1] < 0.5 * errors[0]
    told = "17 linears rounded with error feedback on 4 prompts from seed 0, 2 steps of each"
    assert told in fitted.explain()


def test_off_is_off(fitted: Stack) -> None:
    before, keys = picture(fitted.pipe, STEPS), list(fitted.denoiser.state_dict())
    fitted.apply()
    assert not torch.equal(picture(fitted, STEPS), before)
    fitted.undo()
    assert torch.equal(picture(fitted.pipe, STEPS), before) and list(fitted.denoiser.state_dict()) == keys
    # The very modules that were on are put on again.
    modules = next(p for p in fitted.passes if p.stage == "quantize").rounded.linears.values()
    assert not any(m._state_dict_hooks or "__reduce_ex__" in vars(m) or "follows" in m._buffers for m in modules)


def test_it_is_saved_and_loaded_bit_for_bit(fitted: Stack, tmp_path: Path) -> None:
    with fitted.apply():
        assert fitted.save(tmp_path) == 17
        expected = picture(fitted, STEPS)
    pipe = tiny_pipe()
    assert torch.equal(picture(Stack.load(tmp_path, pipe), STEPS), expected)


def test_a_recipe_names_it_and_cannot_hold_it(fitted: Stack) -> None:
    (quantize,) = parse_recipe({"quantize": {"scheme": "nf4", "feedback": True}}, "mine").passes()
    assert quantize == Quantize("nf4", feedback=True)
    with pytest.raises(StackError, match="a recipe cannot hold rounded weights: write feedback = true"):
        fitted.passes[0].options()


def test_what_is_missing_is_said() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).quantize("nf4", feedback=True)
    with pytest.raises(StackError, match=r"not rounded yet: call fit_rounding\(prompts\)"):
        stack.apply()
    with pytest.raises(StackError, match="expected at least one, got none"):
        stack.fit_rounding([])
    assert stack.passes == (Quantize("nf4", feedback=True),) and not stack.applied
    with pytest.raises(StackError, match=r"feedback=True\), got quantize\(\) without it"):
        Stack(tiny_pipe()).quantize("nf4").fit_rounding(PROMPTS)
    with pytest.raises(StackError, match=r"got no quantize\(\)"):
        Stack(tiny_pipe()).fit_rounding(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int8"}, "feedback=True is for 4-bit weights, got 'int8'"),
        ({"scheme": "nf4", "backend": "bitsandbytes"}, "native backend, got backend='bitsandbytes'"),
    ],
)
def test_what_cannot_be_rounded_so_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(StackError, match=message):
        Quantize(**options, feedback=True)


def test_moments_are_those_of_all_rows_and_hooks_come_off() -> None:
    linear, x = nn.Linear(8, 4), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    with listening({"it": linear}) as sums:
        linear(x[:1]), linear(x[1:])
    rows, seen = x.flatten(0, 1), sums["it"].moments()
    torch.testing.assert_close(seen.second, rows.T @ rows / 15)
    torch.testing.assert_close(seen.mean, rows.mean(0))
    torch.testing.assert_close(seen.covariance, torch.cov(rows.T, correction=0))
    assert not linear._forward_pre_hooks


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5000))
def test_portions_hold_every_linear_once_within_the_budget(sizes: list[int], budget: int) -> None:
    linears = {str(number): nn.Linear(size, 1, device="meta") for number, size in enumerate(sizes)}
    portions = list(in_portions(linears, budget))
    assert [path for portion in portions for path in portion] == list(linears)
    for portion in portions:
        assert len(portion) == 1 or sum(4 * linears[path].in_features ** 2 for path in portion) <= budget
