"""Cards on real pipelines of other families: the noise levels every transformer is really called at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from stack import StackError
from stack.core.installer import Installer
from stack.distill.call import corrected
from stack.distill.card import Card, Weights
from stack.distill.find import fetched, find_card
from stack.distill.fuse import fuse
from stack.distill.listed import scheduler_of
from stack.distill.load import components_of, load_updates
from stack.runtime.call_arguments import CallParameters

from ..lora import save_lora
from .pipes import Tiny, ltx, qwen, sd3, wan

DMD4 = [1.0, 0.9375, 5 / 6, 0.625]


def put_on(card: Card, tiny: Tiny, install: Installer) -> dict[str, object]:
    """What the pass does to a pipeline's schedule, and the arguments of a call that says nothing."""
    made = scheduler_of(card, tiny.pipe.scheduler, card.steps)
    if made is not None:
        install.set_attribute(tiny.pipe, "scheduler", made)
    return corrected(card, {}, CallParameters.of(tiny.pipe).names).arguments


PIPES: dict[str, tuple[Callable[[], Tiny], str, list[float]]] = {
    "sd3": (sd3, "hyper-sd3-4", []),
    "qwen-image": (qwen, "qwen-image-lightning-8", [3 * u / (1 + 2 * u) for u in (1 - i / 8 for i in range(8))]),
    "ltx": (ltx, "ltx-097-distilled", [1.0, 0.993, 0.987, 0.981, 0.975, 0.909, 0.725, 0.00003]),
}


@pytest.mark.parametrize("name", PIPES)
def test_the_transformer_is_called_at_the_published_noise_levels(name: str) -> None:
    make, adapter, wanted = PIPES[name]
    tiny, card, install = make(), find_card(adapter), Installer()
    own, (plain, before) = tiny.pipe.scheduler, tiny.run({"num_inference_steps": card.steps})
    arguments = put_on(card, tiny, install)
    _, seen = tiny.run(arguments)
    assert seen["transformer"] == pytest.approx(wanted or before["transformer"], rel=1e-5)
    assert len(seen["transformer"]) == card.steps, "one call per step: guidance is off, or both branches in one batch"
    install.rollback()
    assert tiny.pipe.scheduler is own
    assert torch.equal(tiny.run({"num_inference_steps": card.steps})[0], plain)


def test_the_stock_schedule_of_qwen_image_is_another_one() -> None:
    tiny = qwen()
    _, seen = tiny.run({"num_inference_steps": 8, "true_cfg_scale": 1.0})
    assert seen["transformer"][-1] == pytest.approx(0.02, abs=1e-6), "stretched to its own end"


@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_two_transformers_share_the_steps_as_the_card_says(tmp_path: Path, boundary: float) -> None:
    tiny, install = wan(boundary), Installer()
    published = find_card("wan22-t2v-lightx2v-4")
    parts = {"transformer": tiny.pipe.transformer, "transformer_2": tiny.pipe.transformer_2}
    changes = {
        name: save_lora(part, tmp_path, name=name, seed=seed, targets=("attn1.to_q", "attn2.to_v"))
        for seed, (name, part) in enumerate(parts.items())
    }
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    files = {name: f"{name}.safetensors" for name in parts}
    card = replace(published, weights=Weights(files), folder=tmp_path)
    plain = tiny.run({"num_inference_steps": 4, "guidance_scale": 1.0})[0]
    found = load_updates(card, fetched(card), components_of(card, tiny.pipe.transformer, tiny.pipe), tiny.pipe)
    assert [fuse(parts[name], found[name], 1.0, install).linears for name in parts] == [2, 2]
    for name, part in parts.items():
        for path, update in changes[name].items():
            torch.testing.assert_close(part.get_parameter(f"{path}.weight"), before[name][f"{path}.weight"] + update)
    _, seen = tiny.run(put_on(card, tiny, install))
    assert seen["transformer"] == pytest.approx(DMD4[:2]) and seen["transformer_2"] == pytest.approx(DMD4[2:])
    install.rollback()
    assert all(torch.equal(v, before[n][k]) for n, part in parts.items() for k, v in part.state_dict().items())
    assert torch.equal(tiny.run({"num_inference_steps": 4, "guidance_scale": 1.0})[0], plain)


def test_another_share_of_the_steps_is_refused() -> None:
    card = find_card("wan22-t2v-lightx2v-4")
    for boundary, first in ((0.95, 1), (0.5, 4)):
        tiny = wan(boundary)
        with pytest.raises(StackError, match=f"2 of 4 steps by the first transformer; with .* it runs {first}"):
            components_of(card, tiny.pipe.transformer, tiny.pipe)
    with pytest.raises(StackError, match="has weights for 'transformer_2': this model has none"):
        components_of(card, sd3().pipe.transformer, sd3().pipe)


def test_fresh_noise_on_every_step_where_the_card_says_so() -> None:
    tiny, card = wan(), find_card("fastwan22-5b-3")
    arguments = put_on(card, tiny, Installer())
    torch.manual_seed(7)  # diffusers draws this noise from the global generator
    again, seen = tiny.run(arguments)
    assert [*seen["transformer"], *seen["transformer_2"]] == pytest.approx(card.sigmas())
    assert not torch.allclose(tiny.run(arguments)[0], again, atol=1e-2), "other noise"
    torch.manual_seed(7)
    assert torch.equal(tiny.run(arguments)[0], again)
    tiny.pipe.scheduler = scheduler_of(replace(card, scheduler=find_card("wan21-t2v-lightx2v-4").scheduler), None, 3)
    assert torch.equal(tiny.run(arguments)[0], tiny.run(arguments)[0]), "Euler draws none"


def test_noise_levels_are_not_shifted_twice_and_their_number_is_fixed() -> None:
    card = find_card("wan21-t2v-lightx2v-4")
    scheduler = scheduler_of(card, FlowMatchEulerDiscreteScheduler(shift=5.0, shift_terminal=0.1), 4)
    assert scheduler is not None
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.7)
    assert scheduler.sigmas.tolist() == pytest.approx([*DMD4, 0.0])
    with pytest.raises(StackError, match="the adapter's schedule has 4 steps, got 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(StackError, match="needs TDDScheduler of its authors"):
        scheduler_of(find_card("tdd-sdxl"), scheduler, 4)
