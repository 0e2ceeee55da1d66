from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stack import Stack, StackError
from stack.recipe import parse_recipe

from ..conftest import picture, tiny_denoiser, tiny_pipe
from ..lora import save_lora

FILE = "pytorch_lora_weights.safetensors"
SIGMAS = [1.0, 0.9, 0.6, 0.2]
CARD = """
family = "flux"
base = ["shapes-flux"]
steps = 4
[weights]
scale = 0.25
[weights.files]
transformer = "pytorch_lora_weights.safetensors"
[schedule]
kind = "sigmas"
sigmas = [1.0, 0.9, 0.6, 0.2]
[guidance]
kind = "none"
[sources]
licence = "[mem] somebody said so"
"""


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A four-step card beside a LoRA for the tiny pipeline."""
    save_lora(tiny_denoiser(), tmp_path)
    (tmp_path / "turbo.toml").write_text(CARD)
    return tmp_path / "turbo.toml"


def sigmas(stack: Stack) -> list[float]:
    return [step.sigma for step in stack.report().steps]


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_fused_weights_are_the_sum_and_keys_stay(tmp_path: Path, prefix: str) -> None:
    pipe = tiny_pipe()
    updates = save_lora(pipe.transformer, tmp_path, prefix=prefix)
    before = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    stack = Stack(pipe).distill(str(tmp_path), scale=0.5).apply()
    after = dict(pipe.transformer.named_parameters())
    assert list(after) == list(before)
    changed = {name.removesuffix(".weight") for name in after if not torch.equal(after[name], before[name])}
    assert changed == set(updates)
    for name, update in updates.items():
        expected = before[f"{name}.weight"] + 0.5 * update
        torch.testing.assert_close(after[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert stack.report().summaries["distill"].startswith(f"{len(updates)} linears updated")
    stack.undo()
    assert all(torch.equal(pipe.transformer.state_dict()[name], before[name]) for name in before)


def test_a_card_brings_its_schedule_and_scale_and_takes_them_away_again(card: Path) -> None:
    pipe = tiny_pipe()
    updates = save_lora(pipe.transformer, card.parent)
    name = next(iter(updates))
    before = pipe.transformer.get_submodule(name).weight.clone()
    scheduler, config, plain = pipe.scheduler, dict(pipe.scheduler.config), picture(pipe, 28)
    stack = Stack(pipe).distill(str(card))
    facts = stack.plan.facts_after
    assert (facts.steps, facts.schedule, facts.distilled) == (4, tuple(SIGMAS), "turbo")
    stack("a green circle")
    assert sigmas(stack) == pytest.approx(SIGMAS)
    assert pipe.scheduler is not scheduler and pipe.scheduler.config.shift == 1.0
    torch.testing.assert_close(pipe.transformer.get_submodule(name).weight, before + 0.25 * updates[name])
    stack.undo()
    assert pipe.scheduler is scheduler and dict(pipe.scheduler.config) == config
    assert torch.equal(pipe.transformer.get_submodule(name).weight, before)
    assert torch.equal(picture(pipe, 28), plain), "call defaults are the pipeline's own again"


def test_calls_that_contradict_the_card_are_put_right_and_told(card: Path) -> None:
    stack = Stack(tiny_pipe()).distill(str(card)).apply()
    with pytest.warns(UserWarning, match="50 steps asked of turbo, which is made for 4 steps: 4 are run"):
        stack("a green circle", num_inference_steps=50)
    assert sigmas(stack) == pytest.approx(SIGMAS)
    assert "warning: 50 steps asked of turbo" in str(stack.report())
    with pytest.warns(UserWarning) as told:
        stack("a green circle", None, None, None, 1.0, 16, 16, 9, [1.0, 0.5], guidance_scale=3.5)
    assert [str(w.message).partition(" asked")[0] for w in told] == ["9 steps", "sigmas", "guidance_scale=3.5"]
    assert sigmas(stack) == pytest.approx(SIGMAS)
    stack("a green circle", num_inference_steps=4)
    assert "asked of" not in str(stack.report()), "the last call contradicts nothing"


def test_strict_refuses_them_all_at_once_before_anything_runs(card: Path) -> None:
    stack = Stack(tiny_pipe(), strict=True).distill(str(card)).apply()
    with pytest.raises(StackError, match=r"50 steps asked of turbo.*; guidance_scale=2 asked of turbo"):
        stack("a green circle", num_inference_steps=50, guidance_scale=2.0)
    assert not stack.report().steps
    assert len(stack("a green circle").images) == 1


def test_an_unverified_card_says_so(card: Path) -> None:
    stack = Stack(tiny_pipe()).distill(str(card))
    said = "unverified card turbo: licence, weights, steps, schedule, guidance not checked at a source"
    assert f"[note] distill: {said}" in stack.explain()
    stack("a green circle")
    assert f"warning: {said}" in str(stack.report())
    text = CARD.replace('licence = "[mem] somebody said so"', "").replace("[sources]\n", "") + "[sources]\n"
    facts = "".join(f'{fact} = "[run] here"\n' for fact in ("weights", "steps", "schedule", "guidance", "licence"))
    card.write_text("verified = true\n" + text + facts)
    assert "unverified" not in Stack(tiny_pipe()).distill(str(card)).explain()


def test_what_is_given_to_distill_wins_over_the_card(card: Path) -> None:
    stack = Stack(tiny_pipe()).distill(str(card), steps=3, shift=2.0)
    stack("a green circle")
    assert sigmas(stack) == pytest.approx([1.0, 4 / 5, 1 / 2])  # 2 u / (1 + u) at u = 1, 2/3, 1/3
    stack.undo()
    stack = Stack(tiny_pipe()).distill(str(card.parent / FILE), sigmas=(1.0, 0.5))
    assert stack.plan.facts_after.steps == 2
    stack("a green circle")
    assert sigmas(stack) == [1.0, 0.5]
    for options, said in (
        ({"steps": 0}, "distill.steps: expected a whole number of at least 1 .* got 0"),
        ({"scale": math.nan}, "distill.scale: expected a finite number, got nan"),
        ({"shift": 2.0, "sigmas": (1.0,)}, "expected a shift or sigmas, got both"),
        ({"steps": 3}, "4 noise levels are 4 steps, no others; got 3"),
        ({"second": True}, "has no second stage"),
    ):
        with pytest.raises(StackError, match=said):
            Stack(tiny_pipe()).distill(str(card), **options).explain()
    with pytest.raises(StackError, match="a shift needs steps"):
        Stack(tiny_pipe()).distill(str(card.parent / FILE), shift=2.0).explain()


def test_weights_without_a_card_leave_the_schedule_alone(card: Path) -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=5).distill(str(card.parent / FILE))
    scheduler = pipe.scheduler
    stack("a green circle")
    assert pipe.scheduler is scheduler and len(stack.report().steps) == 5
    assert not stack.report().warnings


def test_a_whole_checkpoint_is_a_schedule_without_weights() -> None:
    pipe = tiny_pipe()
    before = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    stack = Stack(pipe).distill("flux-schnell")
    assert "a whole checkpoint" in stack.explain() and stack.plan.facts_after.steps == 4
    stack("a green circle", max_sequence_length=16)
    assert len(stack.report().steps) == 4 and "0 linears updated" in stack.report().summaries["distill"]
    fewer = Stack(tiny_pipe()).distill("flux-schnell", steps=2).plan.facts_after
    assert fewer.steps == 2 and "what was changed" not in Stack(tiny_pipe()).distill("flux-schnell", steps=2).explain()
    stack("a green circle", max_sequence_length=16, num_inference_steps=2)
    assert len(stack.report().steps) == 2 and not any("asked" in w for w in stack.report().warnings)
    assert all(torch.equal(t, before[n]) for n, t in pipe.transformer.state_dict().items())
    with pytest.raises(StackError, match="is a whole checkpoint: it has no branch"):
        Stack(tiny_pipe()).distill("flux-schnell", switchable=True).explain()


def test_another_family_or_scheduler_is_refused_by_the_plan(card: Path) -> None:
    with pytest.raises(StackError, match="accvideo-5 is made for HunyuanVideoTransformer3DModel"):
        Stack(tiny_pipe()).distill("accvideo-5").explain()
    with pytest.raises(StackError, match="z-image-turbo is made for ZImageTransformer2DModel"):
        Stack(tiny_pipe()).distill("z-image-turbo").explain()
    card.write_text(CARD + '[scheduler]\nclass = "TDDScheduler"\nsampler = "custom"\n')
    with pytest.raises(StackError, match="needs TDDScheduler of its authors, not in diffusers"):
        Stack(tiny_pipe()).distill(str(card)).explain()


def test_two_adapters_may_not_each_bring_a_schedule(card: Path) -> None:
    both = Stack(tiny_pipe()).distill(str(card)).distill(str(card), switchable=True)
    with pytest.raises(StackError, match="turbo and turbo each bring a schedule"):
        both.explain()
    style = Stack(tiny_pipe()).distill(str(card)).distill(str(card.parent / FILE), switchable=True)
    style("a green circle")
    assert sigmas(style) == pytest.approx(SIGMAS)


def test_weights_that_are_nowhere_are_one_error(card: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe)
    (card.parent / FILE).unlink()
    with pytest.raises(StackError, match=f"card turbo: no {FILE} beside the card"):
        Stack(pipe).distill(str(card)).apply()
    stack = Stack(pipe).distill("flux-turbo-alpha")
    assert "weights are fetched from alimama-creative/FLUX.1-Turbo-Alpha" in stack.explain()
    with pytest.raises(StackError, match=r"cannot fetch diffusion_pytorch_model.safetensors of alimama-creative"):
        stack.apply()
    assert torch.equal(picture(pipe), before)


def test_a_model_of_another_name_is_noted(card: Path) -> None:
    pipe = tiny_pipe()
    for name, noted in (("somebody/other", True), ("/models/shapes-flux", False), ("", False)):
        pipe.register_to_config(_name_or_path=name)
        assert ("is made for shapes-flux, this is" in Stack(pipe).distill(str(card)).explain()) is noted
    pipe.register_to_config(_name_or_path="black-forest-labs/FLUX.1-dev")
    said = "flux-schnell is made for black-forest-labs/FLUX.1-schnell, this is black-forest-labs/FLUX.1-dev"
    assert said in Stack(pipe).distill("flux-schnell").explain()


def test_the_content_of_the_file_is_part_of_what_a_cache_is_calibrated_for(card: Path) -> None:
    def adapters(**options: Any) -> tuple[str, ...]:
        return Stack(tiny_pipe()).distill(str(card), **options).plan.facts_after.adapters

    same = Stack(tiny_pipe()).distill(str(card))
    first = adapters()
    assert same.plan.facts_after.adapters == first
    assert first == adapters() and first[0].startswith("turbo@") and adapters(scale=0.5) != first
    state = load_file(card.parent / FILE)
    save_file({key: tensor + 1e-4 for key, tensor in state.items()}, card.parent / FILE)
    assert adapters() != first
    assert same.plan.facts_after.adapters == adapters(), "the file is looked at anew, not its name"
    for known, repaired in ((adapters(steps=14, shift=1.0), False), (first, True)):
        made_for = (f"adapters={known[0]}", "schedule=" + "+".join(f"{1 - i / 14:g}" for i in range(14)))
        stack = Stack(tiny_pipe()).cache("svd", full_steps=(0, 1, 7), steps=14, calibrated_for=made_for)
        text = stack.distill(str(card), steps=14, shift=1.0).explain()
        assert (f"adapters {first[0]}, now" in text and "[repaired] cache" in text) is repaired
    other = stack.undo("distill").distill(str(card), steps=14, shift=2.0).explain()
    assert "schedule 1+0.928571+" in other


def test_a_bare_denoiser_follows_the_cards_noise_levels(card: Path) -> None:
    stack = Stack(tiny_denoiser()).distill(str(card)).apply()
    assert stack._target.clock.timetable.schedule.sigmas == tuple(SIGMAS)
    stack.undo()
    assert len(stack._target.clock.timetable.schedule.sigmas) == 50


def test_fuse_before_quantize_survives_rounding(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    save_lora(pipe.transformer, tmp_path)
    with Stack(pipe).distill(str(tmp_path)):
        wanted = picture(pipe)
    with Stack(pipe).quantize("int8", min_features=64).distill(str(tmp_path)) as stack:
        assert [p.stage for p in stack.plan.passes()] == ["distill", "quantize"]
        both = picture(pipe)
    with Stack(pipe).quantize("int8", min_features=64):
        quantized = picture(pipe)
    assert (both - wanted).norm() < 0.2 * (quantized - wanted).norm()


def test_a_recipe_names_an_adapter_beside_it(card: Path) -> None:
    recipe = parse_recipe({"distill": {"adapter": "turbo.toml", "sigmas": [1.0, 0.5], "steps": 2}}, "mine", card.parent)
    stack = Stack.from_recipe(recipe, tiny_pipe())
    stack("a green circle")
    assert sigmas(stack) == [1.0, 0.5] and math.isclose(stack.report().steps[0].sigma, 1.0)
