"""The denoiser classes of diffusers as the tests run them: small instances, what each gets, and calls under a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import diffusers
import torch

from stack import Stack
from stack.models.families.refused import REFUSED as NOT_SMALL
from stack.models.small import Sizes, Small, small
from stack.models.wiring import Wiring, wiring_of

EXPORTED = sorted(name for name in dir(diffusers) if "Transformer" in name or "UNet" in name)
DITS = ["HunyuanDiT2DModel", "LuminaNextDiT2DModel", "StableAudio3DiTModel", "StableAudioDiTModel"]
CLASSES = [name for name in EXPORTED if name not in NOT_SMALL] + DITS
LEVELS = (1.0, 0.75, 0.5, 0.25)
Outputs = list[torch.Tensor]


@cache
def made(name: str) -> Small:
    torch.set_num_threads(1)
    return small(getattr(diffusers, name))


@cache
def wired(name: str) -> Wiring:
    return wiring_of(made(name).denoiser)


@cache
def plain(name: str) -> list[Outputs]:
    return loop(made(name).denoiser, made(name))


def loop(model: Any, given: Small, calls: int = len(LEVELS)) -> list[Outputs]:
    """The outputs of one call at each noise level."""
    with torch.no_grad():
        return [flat(model(**given.call(Sizes(noise=level)), return_dict=False)) for level in LEVELS[:calls]]


def flat(value: Any) -> Outputs:
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for item in value if item is not None for one in flat(item)]


def same(one: Outputs, other: Outputs) -> bool:
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


def runs(name: str, stack: Stack, steps: int = len(LEVELS)) -> tuple[list[Outputs], str, list[int]]:
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
