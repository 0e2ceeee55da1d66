"""A call against a card: what is filled in, and what is put right."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DiTPipeline, FluxPipeline, LTXPipeline, WanPipeline

from stack.distill.call import corrected
from stack.distill.card import Card
from stack.distill.find import find_card
from stack.distill.parse import parse_card
from stack.reference.dit_pipeline import ShapesDiTPipeline
from stack.reference.pipeline import ShapesFluxPipeline
from stack.runtime.call_arguments import CallParameters

FLUX = ("prompt", "num_inference_steps", "sigmas", "guidance_scale", "true_cfg_scale", "max_sequence_length")
WAN = ("prompt", "num_inference_steps", "guidance_scale")
LTX = (*WAN, "timesteps", "guidance_rescale", "decode_timestep", "decode_noise_scale")


def free(steps: int = 4, **more: Any) -> Card:
    sigmas = [1 - i / (2 * steps) for i in range(steps)]
    return parse_card(
        {"model": "a/b", "steps": steps, "schedule": {"kind": "sigmas", "sigmas": sigmas}, **more}, "free"
    )


def test_a_call_that_says_nothing_gets_everything() -> None:
    call = corrected(find_card("flux-turbo-alpha"), {"prompt": "x"}, FLUX)
    assert call.arguments == {
        "prompt": "x",
        "num_inference_steps": 8,
        "guidance_scale": 3.5,
        "max_sequence_length": 512,
    }
    assert not call.contradictions
    call = corrected(find_card("wan22-t2v-lightx2v-4"), {"prompt": "x"}, WAN)
    assert call.arguments == {"prompt": "x", "num_inference_steps": 4, "guidance_scale": 1.0}
    call = corrected(find_card("ltx-097-distilled"), {}, LTX)
    assert call.arguments == {
        "num_inference_steps": 8, "guidance_scale": 1.0, "guidance_rescale": 0.7, "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
    }  # fmt: skip
    call = corrected(find_card("qwen-image-lightning-8"), {}, FLUX)
    assert call.arguments["true_cfg_scale"] == 1.0 and "guidance_scale" not in call.arguments
    assert call.arguments["sigmas"] == pytest.approx([3 * u / (1 + 2 * u) for u in (1 - i / 8 for i in range(8))])


def test_the_callers_own_choices_stay_where_the_card_leaves_room() -> None:
    asked = {"num_inference_steps": 6, "guidance_scale": 4.0, "max_sequence_length": 128}
    call = corrected(find_card("hyper-flux-8"), asked, FLUX)
    assert call.arguments == asked and not call.contradictions
    assert corrected(find_card("lcm-lora-sdxl"), {"guidance_scale": 1.8}, FLUX).arguments["guidance_scale"] == 1.8
    same = corrected(free(), {"sigmas": [1.0, 0.875, 0.75, 0.625], "num_inference_steps": 4}, FLUX)
    assert not same.contradictions and same.arguments["sigmas"] == [1.0, 0.875, 0.75, 0.625]
    five = corrected(find_card("tdd-flux"), {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]}, FLUX)
    assert not five.contradictions and five.arguments["sigmas"] == [1.0, 0.8, 0.6, 0.4, 0.2]


CONTRADICTIONS = {
    "steps": (free(), {"num_inference_steps": 50}, {"num_inference_steps": 4}, "50 steps asked of free"),
    "too few": (
        find_card("hyper-flux-8"),
        {"num_inference_steps": 4},
        {"num_inference_steps": 8},
        "which is made for 6 to 8 steps: 8 are run",
    ),
    "timesteps": (
        find_card("ltx-097-distilled"),
        {"timesteps": [1000, 500]},
        {"num_inference_steps": 8},
        "timesteps asked of ltx-097-distilled, which has its own",
    ),
    "sigmas": (free(2), {"sigmas": [1.0, 0.5]}, {"sigmas": [1.0, 0.75]}, "sigmas asked of free, which has its own"),
    "too many sigmas": (
        find_card("flux-turbo-alpha"),
        {"sigmas": [1 - i / 50 for i in range(50)]},
        {"num_inference_steps": 8},
        "sigmas asked of flux-turbo-alpha",
    ),
    "guidance of a free one": (free(), {"guidance_scale": 3.5}, {}, "guidance_scale=3.5 asked of free, made for no"),
    "cfg": (
        find_card("wan21-t2v-lightx2v-4"),
        {"guidance_scale": 5.0},
        {"guidance_scale": 1.0},
        "made for no guidance: it is left out",
    ),
    "true cfg": (find_card("qwen-image-lightning-4"), {"true_cfg_scale": 4.0}, {"true_cfg_scale": 1.0}, "no guidance"),
    "over its range": (find_card("lcm-lora-sdxl"), {"guidance_scale": 7.5}, {"guidance_scale": 1.0}, "for at most 2"),
}


@pytest.mark.parametrize(("card", "asked", "made", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_what_contradicts_the_card_is_put_right(card: Card, asked: dict, made: dict, said: str) -> None:
    before = dict(asked)
    call = corrected(card, asked, (*FLUX, "timesteps"))
    assert len(call.contradictions) == 1 and said in call.contradictions[0]
    assert call.arguments.items() >= made.items()
    assert set(asked) & set(call.arguments) <= set(made)
    assert asked == before, "the caller's own arguments are not written to"


def test_arguments_of_a_call_are_found_behind_a_wrapper() -> None:
    names = CallParameters.of(object.__new__(ShapesFluxPipeline)).names
    assert names[:4] == ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2") and {
        "max_sequence_length",
        "sigmas",
        "guidance_scale",
        "true_cfg_scale",
    } <= set(names)
    for kind, takes in ((FluxPipeline, "sigmas"), (LTXPipeline, "timesteps"), (WanPipeline, ""), (DiTPipeline, "")):
        known = CallParameters.of(object.__new__(kind)).names
        assert {"sigmas", "timesteps"} & set(known) == ({takes} if takes else set())
    assert "guidance_scale" in CallParameters.of(object.__new__(ShapesDiTPipeline)).names
