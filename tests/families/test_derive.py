"""Wirings derived from a class: proven, and good for caches and quantization on every class."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack, StackError
from stack.caching.latent import turned
from stack.models.derive.wiring import wiring_of
from stack.models.estimates import Estimate
from stack.models.modulated import UpToAttention
from stack.models.small import Sizes, small
from stack.models.wiring_words import shown
from stack.runtime.call import DenoiserCall

from .classes import CLASSES, LACKS, LEVELS, REFUSED, made, wired
from .known import KNOWN, Known


@pytest.mark.parametrize("name", CLASSES)
def test_a_wiring_says_what_it_lacks(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(StackError, match=REFUSED[name]):
            wired(name)
        return
    lacks, expected = wired(name).lacks, LACKS.get(name, {})
    assert lacks.keys() == expected.keys()
    assert [reason for key, reason in expected.items() if reason not in lacks[key]] == []


@pytest.mark.parametrize("name", [name for name, lacks in LACKS.items() if "blocks" in lacks])
def test_without_blocks_the_reason_is_said(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).cache("svd")
    with pytest.raises(StackError, match=r"svd needs what is not known of this .* model \(blocks: "):
        stack.explain()


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_what_is_derived_equals_what_is_read_in_the_class(known: Known) -> None:
    found, denoiser = wired(known.name), made(known.name).denoiser
    assert found.block_lists == known.block_lists and found.read == (known.output,)
    assert list(found.streams.items()) == known.streams  # in the order of the return value
    assert set(found.batched) == known.batched and set(found.makers) == known.makers
    assert set(found.constants) == known.constants and set(found.unread) == known.unread
    assert found.modulation == UpToAttention(known.attention, "hidden_states")
    assert {one.others for one in found.attention.values()} == {known.others}
    assert set(found.inputs) == known.inputs
    linears = [path for path, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    inside = {path: path[len(found.block_of(path)) + 1 :] if found.block_of(path) else "" for path in linears}
    roles = {path: found.role(inside[path]) or found.sensitivity(path) for path in linears}
    assert all(roles[path] == role for path, role in known.roles.items())
    assert "unknown role" not in roles.values()


def test_a_class_of_its_own_is_probed_like_any_other() -> None:
    """Remote code: a class that diffusers does not have."""

    class OwnTransformer3DModel(diffusers.WanTransformer3DModel):  # type: ignore[misc]
        pass

    wiring = wiring_of(small(OwnTransformer3DModel).denoiser)
    assert (wiring.family, wiring.block_lists) == ("own", ("blocks",))
    assert "blocks" not in wiring.lacks and wiring.inputs == wired("WanTransformer3DModel").inputs


def test_a_class_that_cannot_be_made_small_gets_what_needs_no_block() -> None:
    class Stranger(diffusers.ModelMixin, diffusers.ConfigMixin):  # type: ignore[misc]
        config_name = "config.json"

        def __init__(self, secret: Any):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, riddle: Any, return_dict: bool = True) -> Any:
            return (self.linear(sample),)

    wiring = wiring_of(Stranger(None))
    assert wiring.latent == "sample" and wiring.block_lists == ()
    assert wiring.lacks["blocks"].startswith("no small instance to try it on: ")


def test_a_time_that_counts_up_to_the_clean_sample_is_followed() -> None:
    """Z-Image is given 1 - sigma, and returns x0 - noise, which its pipeline turns."""
    name = "ZImageTransformer2DModel"
    given = made(name)
    with Stack(given.denoiser, steps=4).cache("svd", interval=2, warmup=1, corrected=False) as stack:
        for level in LEVELS:
            arguments = given.call(Sizes(noise=level))
            with torch.no_grad():
                stack(**{**arguments, "t": 1 - torch.full_like(arguments["t"], level)}, return_dict=False)
        steps = stack.report().steps
    assert "".join(step.kind[0] for step in steps) == "fcfc"
    call = DenoiserCall(partial(int), {}, backwards=True)
    assert turned(Estimate(1.0, -0.5), call) == Estimate(1.0, 0.5)


def test_the_plan_names_what_a_model_does_not_get() -> None:
    said = Stack(made("Kandinsky6Transformer3DModel").denoiser, steps=4).explain()
    assert "not for this model: tokens: 2 of its streams are read behind the last block" in said
    assert "not for this model: whole: its output (1, 3, 8, 12, 16) is not laid out as its latent" in said


def test_what_several_outputs_are_read_off_and_laid_out_as_is_derived() -> None:
    wiring = wired("LTX2VideoTransformer3DModel")
    assert wiring.read == ("image", "audio_hidden_states")
    assert wiring.beside == ("audio_hidden_states",) and {"sigma", "audio_timestep"} < {*wiring.times}
    assert {"proj_in", "audio_proj_in"} == {*wiring.makers}
    assert wired("FluxTransformer2DModel").beside == () and wired("FluxTransformer2DModel").read == ("image",)


@torch.no_grad()
def test_several_outputs_are_told_apart_and_packed_as_one() -> None:
    """What a call makes of its outputs, it makes outputs of again: as a tuple, and as the class's own kind."""
    given = made("LTX2VideoTransformer3DModel")
    wiring, arguments = wired("LTX2VideoTransformer3DModel"), given.call(Sizes())
    for more in ({"return_dict": False}, {}):
        call = DenoiserCall(partial(int), {**arguments, **more}, beside=wiring.beside, returns=wiring.returns)
        result = given.denoiser(**arguments, **more)
        again = call.answer(call.made(result))
        assert type(again) is type(result) and len(again) == 2
        assert all(torch.equal(again[place], result[place]) for place in (0, 1))
    sizes = [arguments[name].numel() for name in ("hidden_states", "audio_hidden_states")]
    assert call.latent.shape == (1, sum(sizes), 1)


@torch.no_grad()
def test_a_step_that_is_skipped_whole_answers_with_every_output() -> None:
    """What the denoiser has added to the latent and to the sound is added again."""
    given = made("LTX2VideoTransformer3DModel")
    with Stack(given.denoiser, steps=4).cache("easycache", threshold=1e6, warmup=2, order=0) as stack:
        calls = [given.call(Sizes(noise=level)) for level in LEVELS[:3]]
        made_of = [stack(**arguments) for arguments in calls]
        assert [step.kind for step in stack.report().steps] == ["full", "full", "cached"]
    for place, name in enumerate(("hidden_states", "audio_hidden_states")):
        added = made_of[1][place] - calls[1][name]
        assert torch.allclose(made_of[2][place], calls[2][name] + added, atol=1e-6)


def test_the_command_says_what_was_derived() -> None:
    said = shown("SD3Transformer2DModel")
    assert "streams: text in encoder_hidden_states, image in hidden_states; the head reads image" in said
    assert "transformer_blocks.*.ff: mlp; skips norm2 where it is cached" in said
    assert "attention over the latent's tokens: transformer_blocks.*.attn, with other tokens behind them" in said
    assert "grid of the latent's tokens: a token for each 2 x 2 patch of hidden_states" in said
    assert "entries along the tokens in: rotary_emb" in shown("WanTransformer3DModel")
    with pytest.raises(StackError, match="did you mean 'SD3Transformer2DModel'"):
        shown("SD4Transformer2DModel")
