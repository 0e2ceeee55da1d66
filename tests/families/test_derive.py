"""Wirings derived from a class: equal to those by hand, proven, and good for caches and quantization on every class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack, StackError
from stack.caching.latent import turned
from stack.models.derive.derive import derived
from stack.models.estimates import Estimate
from stack.models.families.refused import REFUSED as NOT_SMALL
from stack.models.shown import shown
from stack.models.small import Sizes, Small, small
from stack.models.wiring import FAMILIES, Wiring, wiring_of
from stack.runtime.call import DenoiserCall

EXPORTED = sorted(name for name in dir(diffusers) if "Transformer" in name or "UNet" in name)
DITS = ["HunyuanDiT2DModel", "LuminaNextDiT2DModel", "StableAudio3DiTModel", "StableAudioDiTModel"]
CLASSES = [name for name in EXPORTED if name not in NOT_SMALL] + DITS
LEVELS = (1.0, 0.75, 0.5, 0.25)


@cache
def made(name: str) -> Small:
    torch.set_num_threads(1)
    return small(getattr(diffusers, name))


@cache
def wired(name: str) -> Wiring:
    return wiring_of(made(name).denoiser)


@cache
def plain(name: str) -> list[list[torch.Tensor]]:
    return loop(made(name).denoiser, made(name))


def loop(model: Any, given: Small, calls: int = len(LEVELS)) -> list[list[torch.Tensor]]:
    """The outputs of one call at each noise level."""
    with torch.no_grad():
        return [flat(model(**given.call(Sizes(noise=level)), return_dict=False)) for level in LEVELS[:calls]]


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for item in value if item is not None for one in flat(item)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@contextmanager
def counting(name: str) -> Iterator[list[int]]:
    """How often each block of a class runs, in running order; filled in at the end."""
    blocks = [block for _, block in wired(name).blocks(made(name).denoiser)]
    calls, total = [0] * len(blocks), list[int]()

    def counted(at: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[at] += 1
            return inner(*args, **kwargs)

        return forward

    for at, block in enumerate(blocks):
        block.forward = counted(at, block.forward)
    try:
        yield total
    finally:
        for block in blocks:
            del block.forward
        total += calls


def runs(name: str, stack: Stack, steps: int = len(LEVELS)) -> tuple[list[list[torch.Tensor]], str, list[int]]:
    """Outputs, kinds of steps and calls of every block under a stack, which is taken off again bit for bit."""
    given = made(name)
    with counting(name) as calls, stack:
        outputs = loop(stack, given, steps)
        kinds = "".join(step.kind[0] for step in stack.report().steps)
    with torch.no_grad():
        after = flat(given.denoiser(**given.call(Sizes(noise=LEVELS[1])), return_dict=False))
    assert same(after, plain(name)[1])
    return outputs, kinds, calls


NO_LIST = {"blocks": "no list of blocks that take and return tokens (B, N, D)"}
TWO = {"blocks": "behind the last block 2 of its streams are read", "whole": "it returns 2 outputs"}
ATTENTION_ONLY = {"tokens": "no feed-forward of its own"}
ALL_TOKENS = {"tokens": "cannot be given some tokens only"}
NEITHER = {key: "no attention or feed-forward that gives a whole stream" for key in ("modules", "tokens")}
CHANGED = {"range": "streams are changed between blocks, or blocks return more than streams"}
RESTLESS = {key: "a call leaves other weights or buffers behind" for key in ("whole", "blocks")}
LAYOUT = {"whole": "is not laid out as its latent"}
NO_ROWS = {"rows": "a block does not run for one sample of a batch"}
OTHER_ROWS = {"rows": "a block gives other tokens for one sample than in a batch"}
# What a class does not get, and a part of the reason.
LACKS: dict[str, dict[str, str]] = {
    "AnyFlowFARTransformer3DModel": ALL_TOKENS,
    "AnyFlowTransformer3DModel": ALL_TOKENS,
    "AudioLDM2UNet2DConditionModel": NO_LIST,
    "BriaFibo2Transformer2DModel": ALL_TOKENS,
    "BriaFiboTransformer2DModel": CHANGED,
    "CogVideoXTransformer3DModel": ALL_TOKENS,
    "CogView3PlusTransformer2DModel": ALL_TOKENS,
    "CogView4Transformer2DModel": ATTENTION_ONLY,
    "ConsisIDTransformer3DModel": {**ALL_TOKENS, **CHANGED},
    "DreamLiteUNetModel": NO_LIST,
    "EasyAnimateTransformer3DModel": ALL_TOKENS,
    "ErnieImageTransformer2DModel": NO_LIST,
    "Flux2Transformer2DModel": ALL_TOKENS,
    "Flux3Transformer2DModel": ALL_TOKENS,
    "GlmImageTransformer2DModel": ATTENTION_ONLY,
    "HeliosTransformer3DModel": ALL_TOKENS,
    "HiDreamImageTransformer2DModel": {**NEITHER, **CHANGED},
    "HunyuanVideoFramepackTransformer3DModel": NO_ROWS,
    "I2VGenXLUNet": NO_LIST,
    "Kandinsky3UNet": NO_LIST,
    "Kandinsky5Transformer3DModel": LAYOUT,
    "Kandinsky6SRTransformer3DModel": LAYOUT,
    "Kandinsky6Transformer3DModel": TWO,
    "LTX2VideoTransformer3DModel": TWO,
    "LatteTransformer3DModel": NO_LIST,
    "LongCatAudioDiTTransformer": ALL_TOKENS,
    "MiniMaxH3Transformer3DModel": {**ALL_TOKENS, "whole": "it returns 2 outputs"},
    "MiniMaxMusic3Transformer1DModel": ATTENTION_ONLY,
    "NucleusMoEImageTransformer2DModel": {**ALL_TOKENS, **NO_ROWS},
    "OmniGenTransformer2DModel": RESTLESS,
    "PRXTransformer2DModel": NEITHER,
    "QwenImage21Transformer2DModel": {**ALL_TOKENS, **LAYOUT, **OTHER_ROWS},
    "SanaTransformer2DModel": ATTENTION_ONLY,
    "SanaVideoTransformer3DModel": ATTENTION_ONLY,
    "SanaWMTransformer3DModel": ALL_TOKENS,
    "StableCascadeUNet": NO_LIST,
    "UNet1DModel": NO_LIST,
    "UNet2DConditionModel": NO_LIST,
    "UNet2DModel": NO_LIST,
    "UNet3DConditionModel": NO_LIST,
    "UNetMotionModel": NO_LIST,
    "UNetSpatioTemporalConditionModel": {**NO_LIST, **LAYOUT},
    "WanAnimateTransformer3DModel": CHANGED,
    "WanVACETransformer3DModel": CHANGED,
    "StableAudio3DiTModel": ALL_TOKENS,
}
# Classes that are refused as a whole.
REFUSED = {
    "Cosmos3OmniTransformer": "expected a denoiser whose forward takes hidden_states or sample",
    "RFD4ProteinaTransformer": "expected a denoiser whose forward takes hidden_states or sample",
}


def names(*lacks: str) -> list[str]:
    """Classes that can be wired and lack none of these."""
    return [n for n in CLASSES if n not in REFUSED and not LACKS.get(n, {}).keys() & set(lacks)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_wiring_says_what_it_lacks(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(StackError, match=REFUSED[name]):
            wired(name)
        return
    lacks = {key: reason for key, reason in wired(name).lacks.items() if "by hand" not in reason}
    expected = LACKS.get(name, {})
    assert lacks.keys() == expected.keys()
    assert [reason for key, reason in expected.items() if reason not in lacks[key]] == []


@pytest.mark.parametrize("name", names("blocks"))
def test_a_cached_step_runs_no_block_and_full_steps_are_exact(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).cache("svd", interval=2, warmup=1, corrected=False)
    outputs, kinds, calls = runs(name, stack)
    assert kinds == "fcfc" and set(calls) == {2}
    assert [same(out, own) for out, own in zip(outputs, plain(name), strict=True)] == [True, False, True, False]


@pytest.mark.parametrize("name", names("blocks", "range"))
def test_a_gate_skips_all_but_the_first_block(name: str) -> None:
    outputs, kinds, calls = runs(name, Stack(made(name).denoiser, steps=4).cache("first-block", threshold=1e6), 2)
    assert kinds == "fp" and calls == [2] + [1] * (len(calls) - 1)
    assert same(outputs[0], plain(name)[0]) and not same(outputs[1], plain(name)[1])


@pytest.mark.parametrize("name", [name for name, lacks in LACKS.items() if "blocks" in lacks])
def test_without_blocks_the_reason_is_said(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).cache("svd")
    with pytest.raises(StackError, match=r"svd needs what is not known of this .* model \(blocks: "):
        stack.explain()


# These return more numbers than they are given: a learned variance, or patches.
MORE = ("HunyuanDiT2DModel", "LatteTransformer3DModel", "LuminaNextDiT2DModel", "NucleusMoEImageTransformer2DModel")
MORE += ("PixArtTransformer2DModel", "DiTTransformer2DModel")


@pytest.mark.parametrize("name", [name for name in names("whole") if name not in MORE])
def test_around_the_denoiser_steps_are_skipped_whole(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).cache("easycache", threshold=1e6, warmup=2)
    outputs, kinds, calls = runs(name, stack, 3)
    assert kinds[:2] == "ff" and kinds[2] == "c" and set(calls) <= {kinds.count("f")}
    assert same(outputs[0], plain(name)[0]) and not same(outputs[2], plain(name)[2])


@pytest.mark.parametrize("name", names("blocks", "modules"))
def test_modules_are_kept_before_their_gates(name: str) -> None:
    """Every block runs on a cached step, with its attention and feed-forward as they were."""
    stack = Stack(made(name).denoiser, steps=4).cache("fora", interval=2, warmup=1, corrected=False)
    outputs, kinds, calls = runs(name, stack, 2)
    assert kinds == "fc" and set(calls) == {2}
    assert [same(out, own) for out, own in zip(outputs, plain(name), strict=False)] == [True, False]


@pytest.mark.parametrize("name", names("blocks", "range", "modules", "tokens"))
def test_some_tokens_are_computed(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).cache("duca", interval=4, warmup=1)
    outputs, kinds, _ = runs(name, stack, 2)
    assert kinds[0] == "f" and set(kinds[1:]) <= {"p", "c"} and not same(outputs[1], plain(name)[1])


@pytest.mark.parametrize("name", names())
def test_linears_are_quantized_by_their_roles(name: str) -> None:
    stack = Stack(made(name).denoiser, steps=4).quantize("int8-weight", min_features=1)
    outputs, _, _ = runs(name, stack, 1)
    paths = dict(made(name).denoiser.named_modules())
    wiring = wired(name)
    roles = [wiring.role(path[len(wiring.block_of(path)) + 1 :]) for path in paths if wiring.block_of(path)]
    assert not same(outputs[0], plain(name)[0]) and (not roles or "attention" in roles)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_derived_equals_what_is_written_by_hand(family: str) -> None:
    hand = FAMILIES[family]
    name = hand.classes[0]
    denoiser = made(name).denoiser
    found = derived(denoiser)
    assert (found.family, found.block_lists) == (hand.family, hand.block_lists)
    assert found.output_stream == hand.output_stream and dict(found.streams) == hand.streams
    assert list(found.streams) == list(hand.streams)  # in the order of the return value
    assert set(found.batched) == set(hand.batched) and set(found.makers) == set(hand.makers)
    assert set(found.constants) == set(hand.constants) and set(found.unread) == set(hand.unread)
    given = made(name).call(Sizes())
    assert set(found.inputs) == {argument for argument in hand.inputs if argument in given}
    for path, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear):
            inside = path[len(hand.block_of(path)) + 1 :] if hand.block_of(path) else ""
            assert found.role(inside) == hand.role(inside), path
            assert hand.role(inside) or found.sensitivity(path) == hand.sensitivity(path), path


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
    said = Stack(made("LTX2VideoTransformer3DModel").denoiser, steps=4).explain()
    assert "not for this model: blocks: behind the last block 2 of its streams are read" in said
    assert "not for this model: whole: it returns 2 outputs" in said


def test_the_command_says_what_was_derived() -> None:
    said = shown("SD3Transformer2DModel")
    assert "streams: text in encoder_hidden_states, image in hidden_states; image is read behind them" in said
    assert "transformer_blocks.*.ff: mlp, and norm2 need not run where it is kept" in said
    with pytest.raises(StackError, match="did you mean 'SD3Transformer2DModel'"):
        shown("SD4Transformer2DModel")
