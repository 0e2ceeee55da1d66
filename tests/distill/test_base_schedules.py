"""Cards that leave the noise levels to the base's scheduler: they are those of the base as it is published."""

from __future__ import annotations

import math
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from stack.distill.find import cards_in, find_card, shipped_folder
from stack.distill.fits import unusable
from stack.distill.listed import scheduler_of

from .test_published import TRAILING

# Settings of the bases, and the factor s in sigma = s u / (1 + (s - 1) u) that they come to.
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
BASES: dict[str, tuple[dict[str, Any], float | None, float]] = {
    **dict.fromkeys(["hyper-flux-8", "hyper-flux-16", "flux-turbo-alpha", "tdd-flux"], (FLUX, 1.15, math.exp(1.15))),
    "flux-schnell": ({"shift": 1.0}, None, 1.0),
    **dict.fromkeys(["hyper-sd3-4", "hyper-sd3-8", "hyper-sd3-16", "sd35-large-turbo"], ({"shift": 3.0}, None, 3.0)),
    "z-image-turbo": ({"shift": 3.0}, None, 3.0),
}
# What these are trained with is known of their own repositories only: their pipeline's scheduler is left as it is.
LEFT = {
    "chronoedit-8", "flux2-klein-4b", "flux2-klein-9b", "hunyuanimage21-distilled", "minimax-h3-turbo-4",
}  # fmt: skip
QWEN = "qwen-image-21-lightning-4"
ELSEWHERE = {"pixart-lcm", "lcm-lora-sd15", "lcm-lora-sdxl", *(f"sdxl-lightning-{steps}" for steps in TRAILING)}
CAUSVID = {"wan21-causvid-1.3b", "wan21-causvid-14b"}


def test_no_card_is_left_out() -> None:
    cards = [card for card in cards_in(shipped_folder()) if card.schedule.kind == "scheduler" and not unusable(card)]
    assert {card.name for card in cards} == {*BASES, *LEFT, *ELSEWHERE, *CAUSVID, QWEN}


@pytest.mark.parametrize("name", BASES)
def test_the_base_runs_its_own_noise_levels_in_the_cards_steps(name: str) -> None:
    settings, mu, shift = BASES[name]
    card, base = find_card(name), FlowMatchEulerDiscreteScheduler(**settings)
    assert scheduler_of(card, base, card.steps) is None, "the pipeline's own stays"
    times = [1 - i / card.steps for i in range(card.steps)]
    base.set_timesteps(sigmas=times, mu=mu)
    wanted = [shift * u / (1 + (shift - 1) * u) for u in times]
    assert base.sigmas.tolist() == pytest.approx([*wanted, 0.0], rel=1e-5)


@pytest.mark.parametrize("name", sorted(LEFT))
def test_the_others_leave_the_scheduler_alone(name: str) -> None:
    assert scheduler_of(find_card(name), FlowMatchEulerDiscreteScheduler(), 4) is None


def test_qwen_image_21_shifts_with_the_size_and_does_not_stretch_its_end() -> None:
    base = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="linear")
    made = scheduler_of(find_card(QWEN), base, 4)
    assert type(made) is FlowMatchEulerDiscreteScheduler
    times = [1.0, 0.75, 0.5, 0.25]
    made.set_timesteps(sigmas=times, mu=0.9)
    shift = math.exp(0.9)
    assert made.sigmas.tolist() == pytest.approx([*(shift * u / (1 + (shift - 1) * u) for u in times), 0.0], rel=1e-5)


@pytest.mark.parametrize("name", sorted(CAUSVID))
def test_causvid_takes_unipc_with_the_settings_of_wan(name: str) -> None:
    base = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    made = scheduler_of(find_card(name), base, 12)
    assert type(made) is UniPCMultistepScheduler and made is not base
    assert (made.config.flow_shift, made.config.use_flow_sigmas) == (8.0, True)
    made.set_timesteps(12)
    base.set_timesteps(12)
    assert made.sigmas.tolist() == base.sigmas.tolist() and len(made.sigmas) == 13
