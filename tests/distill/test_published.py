"""The schedule of every card that has one of its own, against the numbers its authors published."""

from __future__ import annotations

import diffusers
import pytest
import torch

from stack.distill.card import Card
from stack.distill.find import cards_in, find_card, shipped_folder
from stack.distill.listed import scheduler_of

# Those of others; our own are tested with the models they were trained for.
CARDS = {c.name: c for c in cards_in(shipped_folder()) if c.model or (c.weights and c.weights.repo)}
DMD4 = [1.0, 0.9375, 0.8333, 0.625]
LTX = [1.0, 0.993, 0.987, 0.981, 0.975, 0.909, 0.725, 0.00003]
UPSCALED = [1.0, 0.909, 0.725, 0.421]  # published with a last 0, which is where every schedule ends
LTX2 = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]


def shifted(shift: float, times: list[float]) -> list[float]:
    return [shift * t / (1 + (shift - 1) * t) for t in times]


def even(steps: int) -> list[float]:
    return [(steps - i) / steps for i in range(steps)]


PUBLISHED = {
    **dict.fromkeys(["wan21-t2v-lightx2v-4", "wan21-i2v-lightx2v-4", "hunyuanvideo15-lightx2v-4"], DMD4),
    **dict.fromkeys(["wan22-t2v-lightx2v-4", "wan22-i2v-lightx2v-4"], DMD4),
    **dict.fromkeys(["ltx-097-distilled", "ltx-098-distilled"], LTX),
    **dict.fromkeys(["ltx2-distilled", "ltx2-distilled-lora", "ltx25-distilled", "ltx25-distilled-lora"], LTX2),
    **dict.fromkeys(["fastwan21-1.3b-3", "fastwan21-14b-3"], shifted(8, [1.0, 0.757, 0.522])),
    "fastwan22-5b-3": shifted(5, [1.0, 0.757, 0.522]),
    "accvideo-5": shifted(7, even(5)),
    "fasthunyuan-6": shifted(17, even(6)),
    **{name: shifted(3, even(CARDS[name].steps)) for name in CARDS if "qwen" in name and "21-" not in name},
    "pcm-sd3-2-shift1": even(2),
    "pcm-sd3-4-shift1": even(4),
    "pcm-sd3-4-shift3": shifted(3, even(4)),
}
SECOND = {
    **dict.fromkeys(["ltx-097-distilled", "ltx-098-distilled"], UPSCALED),
    **dict.fromkeys(["ltx2-distilled", "ltx2-distilled-lora", "ltx25-distilled", "ltx25-distilled-lora"], LTX2[-3:]),
}
# What scheduler of which settings the others name; their noise levels are the base's own, or those of this class.
TRAILING = {2: [999, 499], 4: [999, 749, 499, 249], 8: [999, 874, 749, 624, 499, 374, 249, 124]}


def made(card: Card, base: object = None) -> list[float]:
    scheduler = scheduler_of(card, base, card.steps)
    assert scheduler is not None
    scheduler.set_timesteps(card.steps, device="cpu")
    assert scheduler.timesteps.tolist() == pytest.approx([1000 * s for s in scheduler.sigmas.tolist()[:-1]], rel=1e-6)
    return scheduler.sigmas.tolist()


def test_no_schedule_is_left_out() -> None:
    own = {name for name, card in CARDS.items() if card.schedule.kind != "scheduler"}
    assert own == set(PUBLISHED)
    assert {name for name, card in CARDS.items() if card.second} == set(SECOND)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_noise_levels_are_the_published_ones(name: str) -> None:
    card = CARDS[name]
    assert card.sigmas() == pytest.approx(PUBLISHED[name], abs=5e-5)
    if card.scheduler.sampler != "custom":
        assert made(card) == pytest.approx([*PUBLISHED[name], 0.0], abs=5e-5)


@pytest.mark.parametrize("name", SECOND)
def test_the_second_stage_too(name: str) -> None:
    card = CARDS[name].second_stage()
    assert made(card) == pytest.approx([*SECOND[name], 0.0], abs=1e-6)
    assert card.call.items() >= {"denoise_strength": 0.999}.items() or card.call["noise_scale"] == SECOND[name][0]


@pytest.mark.parametrize("steps", TRAILING)
def test_sdxl_lightning_ends_its_steps_late(steps: int) -> None:
    base = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    scheduler = scheduler_of(find_card(f"sdxl-lightning-{steps}"), base, steps)
    assert type(scheduler) is diffusers.EulerDiscreteScheduler
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == TRAILING[steps]
    assert torch.equal(scheduler.alphas_cumprod, base.alphas_cumprod), "the noise of training is the base's"
    assert base.config.timestep_spacing == "leading", "the base's scheduler stays as it is"


@pytest.mark.parametrize("name", ["lcm-lora-sdxl", "lcm-lora-sd15", "pixart-lcm"])
def test_latent_consistency_takes_its_scheduler_from_the_base(name: str) -> None:
    base = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = scheduler_of(find_card(name), base, 4)
    assert type(scheduler) is diffusers.LCMScheduler
    assert scheduler.config.beta_schedule == "scaled_linear" and scheduler.config.beta_end == 0.012
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
