"""Two denoisers compared, calibrated and saved as one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.calibration.search import through
from stack.comparison.base import stand_in
from stack.comparison.compare import compare
from stack.comparison.engine import PipelineEngine
from stack.comparison.rows import Row
from stack.models.denoiser import all_denoisers
from stack.recipe import Recipe
from stack.saving import RECIPE

from .build import STEPS, Whole, wan
from .special import flux2_vae, ideogram4, wan_vae

SWITCH = 5  # the step at which Wan's second denoiser takes over


def wan22() -> Whole:
    whole = wan(2)
    whole.pipe.vae = wan_vae()
    return whole


def ideogram() -> Whole:
    whole = ideogram4()
    whole.pipe.vae = flux2_vae(whole.pipe.transformer.config.in_channels // 4)
    return whole


PAIRS: dict[str, Callable[[], Whole]] = {"wan22": wan22, "ideogram4": ideogram}


def beside(whole: Whole) -> dict[str, Any]:
    """What a call is given beside its prompt."""
    return {name: value for name, value in whole.given.items() if name != "prompt"}


def recipe(**cache: Any) -> Recipe:
    return Recipe("r", "", "shapes-flux", STEPS, {"cache": cache})


def compared(whole: Whole, recipe: Recipe) -> dict[str, Any]:
    found = compare(
        whole.pipe,
        [recipe],
        name="pair",
        progress=False,
        prompts=["one"],
        steps=STEPS,
        compile_base=False,
        call=beside(whole),
    ).record
    return {row["name"]: row for row in found["rows"]}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_has_one_set_of_rows_that_counts_the_steps_of_both(name: str) -> None:
    rows = compared(PAIRS[name](), recipe(method="reuse", interval=4, warmup=1))
    # Wan's second denoiser begins with a full step of its own; Ideogram's two are called in every step.
    full = ["full" if step in (0, 4) or (step == SWITCH and name == "wan22") else "cached" for step in range(STEPS)]
    assert rows["all"]["kinds"] == full and rows["base"]["kinds"] == ["full"] * STEPS
    assert rows["all"]["full_steps"] == full.count("full") and 5 < rows["all"]["psnr_db"] < 99


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_that_runs_every_step_in_full_makes_the_pictures_of_the_base(name: str) -> None:
    assert compared(PAIRS[name](), recipe(method="svd", interval=1))["all"]["psnr_db"] == 99.0


def test_the_base_runs_on_stand_ins_of_both_and_warms_both_up() -> None:
    whole = wan22()
    engine = PipelineEngine(whole.pipe, {"r": recipe(method="reuse")}, STEPS, beside(whole))
    engine.prepare("one", compile_base=False)
    assert engine.fewest == 4  # of two steps both are above the boundary
    wanted = engine.generate(Row("base", "base", "base", steps=STEPS), "one", 3).picture
    calls = dict.fromkeys(whole.denoisers, 0)
    twins = {name: stand_in(denoiser) for name, denoiser in all_denoisers(whole.pipe).items()}
    for name, twin in twins.items():
        twin.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    engine.base.denoisers = twins
    assert torch.equal(engine.generate(Row("base", "base", "base", steps=STEPS), "one", 3).picture, wanted)
    assert calls == {"transformer": 2 * SWITCH, "transformer_2": 2 * (STEPS - SWITCH)}
    assert all_denoisers(whole.pipe) != twins


@pytest.mark.parametrize("name", PAIRS)
def test_both_are_calibrated(name: str) -> None:
    whole = PAIRS[name]()
    plain = whole.call()
    stack = Stack(whole.pipe, steps=STEPS).cache("svd", count=3)
    found = stack.calibrate(["one", "two"], ["three"], trials=6, budget=600, progress=False, call=beside(whole))
    (cache,) = stack.passes
    assert isinstance(cache, Cache)
    assert found.psnr_db >= found.start_psnr_db > 10 and found.trials > 3
    whole.call(stack)
    report = stack.report()
    full = {record.step for record in report.steps if record.kind == "full"}
    if found.kept:
        assert cache == Cache("svd", count=3)
    else:
        assert full == set(cache.full_steps) and len(full) == found.full
    assert report.full_steps_each == len(full)
    assert (SWITCH in full) or name == "ideogram4"
    stack.undo()
    assert torch.equal(whole.call(), plain)


def test_full_steps_are_moved_onto_the_step_of_the_switch_and_not_added() -> None:
    assert through((0, 3, 6), [5]) == (0, 3, 5)
    assert through((0, 3, 5), [5]) == (0, 3, 5)
    assert through((0,), [5]) == (0, 5)  # the first stays where it is


def test_ratios_are_measured_over_the_steps_of_both() -> None:
    whole = wan22()
    stack = Stack(whole.pipe, steps=STEPS).cache("magcache")
    stack.fit_gate(["one", "two"], progress=False, call=beside(whole))
    (cache,) = stack.passes
    assert isinstance(cache, Cache)
    ratios = cache.measured["ratios"] if "ratios" in cache.measured else cache.policy.options()["ratios"]
    assert len(ratios) == STEPS and ratios[0] == 1.0 and len(set(ratios)) > STEPS - 2


@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_stack_holds_both(name: str, tmp_path: Path) -> None:
    whole = PAIRS[name]()
    stack = Stack(whole.pipe, steps=STEPS).quantize("int8", min_features=8).cache("svd", count=3)
    wanted = whole.call(stack)
    second = whole.denoisers[1]
    converted = stack.report().passes
    count = stack.save(tmp_path / "saved")
    assert count == converted["quantize"]["converted"] + converted[f"quantize on {second}"]["converted"]
    other = PAIRS[name]()
    assert not torch.equal(other.call(), wanted)
    loaded = Stack.load(tmp_path / "saved", other.pipe)
    assert torch.equal(other.call(loaded), wanted)


def test_a_saved_pair_goes_on_no_other_model_and_a_damaged_second_leaves_the_first_alone(tmp_path: Path) -> None:
    whole = wan22()
    Stack(whole.pipe, steps=STEPS).quantize("int8", min_features=8).apply().save(tmp_path / "pair")
    alone = wan()
    with pytest.raises(StackError, match="weights of one denoiser and transformer_2, this model has no other beside"):
        Stack.load(tmp_path / "pair", alone.pipe)
    Stack(alone.pipe, steps=STEPS).quantize("int8", min_features=8).apply().save(tmp_path / "one")
    fresh = wan22()
    plain = fresh.call()
    with pytest.raises(StackError, match="has weights of one denoiser, this model has transformer_2 beside its first"):
        Stack.load(tmp_path / "one", fresh.pipe)
    (damaged,) = (tmp_path / "pair" / "transformer_2").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00\x00"[:1])
    text = (tmp_path / "pair" / RECIPE).read_text()
    assert "weights_of_transformer_2" in text
    with pytest.raises(StackError, match=r"transformer_2.* is not the file that|cannot read"):
        Stack.load(tmp_path / "pair", fresh.pipe)
    assert torch.equal(fresh.call(), plain)
