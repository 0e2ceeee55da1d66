"""The denoiser classes of diffusers as the tests run them: small instances, what each gets, and calls under a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import diffusers
import torch

from stack import Stack
from stack.models.derive.wiring import wiring_of
from stack.models.families.refused import REFUSED as NOT_SMALL
from stack.models.layout import Wiring
from stack.models.small import Sizes, Small, small

EXPORTED = sorted(name for name in dir(diffusers) if "Transformer" in name or "UNet" in name)
DITS = ["HunyuanDiT2DModel", "LuminaNextDiT2DModel", "StableAudio3DiTModel", "StableAudioDiTModel"]
CLASSES = [name for name in EXPORTED if name not in NOT_SMALL] + DITS
MOST_USED = frozenset((
    "ZImageTransformer2DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel", "QwenImageTransformer2DModel",
    "QwenImage21Transformer2DModel", "WanTransformer3DModel", "MiniMaxH3Transformer3DModel",
    "LTXVideoTransformer3DModel", "Flux3Transformer2DModel", "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel", "Krea2Transformer2DModel", "Ideogram4Transformer2DModel",
    "SD3Transformer2DModel", "ChromaTransformer2DModel",
))  # fmt: skip
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


NO_LIST = dict.fromkeys(("blocks", "grid", "along"), "no list of blocks that pass tokens (B, N, D)")
TWO = {"tokens": "2 of its streams are read behind the last block"}
ATTENTION_ONLY = {"tokens": "no feed-forward of its own"}
ALL_TOKENS = {"tokens": "cannot be given some tokens only"}
NEITHER = {key: "no attention or feed-forward that gives a whole stream" for key in ("modules", "tokens")}
CHANGED = {"range": "streams are changed between blocks, or blocks return more than streams"}
RESTLESS = {key: "a call leaves other weights or buffers behind" for key in ("whole", "blocks")}
LAYOUT = {"whole": "is not laid out as its latent"}
NO_ROWS = {"rows": "a block does not run for one sample of a batch"}
OTHER_ROWS = {"rows": "a block gives other tokens for one sample than in a batch"}
# Classes without sparse attention, and a part of the reason.
DENSE = {
    "AnyFlowFARTransformer3DModel": "blocks.*.attn1 (AnyFlowCausalAttnProcessor)",
    "HunyuanVideoFramepackTransformer3DModel": "the latent's tokens are between others",
    "I2VGenXLUNet": "attends within parts of the sequence",
    "Ideogram4Transformer2DModel": "how much of the latent a token is changes with the size",
    "Kandinsky6SRTransformer3DModel": "visual_transformer_blocks.*.self_attention (Kandinsky6SRAttnProcessor)",
    "LatteTransformer3DModel": "attends within parts of the sequence",
    "MiniMaxH3Transformer3DModel": "the latent's tokens are between others",
    "NucleusMoEImageTransformer2DModel": "no attention over all the latent's tokens calls",
    "PRXTransformer2DModel": "no attention over all the latent's tokens calls",
    "QwenImage21Transformer2DModel": "no attention over all the latent's tokens calls",
    "SanaTransformer2DModel": "transformer_blocks.*.attn1 (SanaLinearAttnProcessor2_0)",
    "SanaVideoTransformer3DModel": "transformer_blocks.*.attn1 (SanaLinearAttnProcessor3_0)",
    "StableAudio3DiTModel": "attends more than once",
    "StableCascadeUNet": "no attention over all the latent's tokens calls",
    "UNet1DModel": "mid_block.attentions.* (SelfAttention1d)",
    "UNet3DConditionModel": "attends within parts of the sequence",
    "UNetMotionModel": "attends within parts of the sequence",
    "UNetSpatioTemporalConditionModel": "attends within parts of the sequence",
}
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
    "Kandinsky6Transformer3DModel": {**TWO, **LAYOUT},
    "LTX2VideoTransformer3DModel": TWO,
    "LatteTransformer3DModel": NO_LIST,
    "LongCatAudioDiTTransformer": ALL_TOKENS,
    "MiniMaxH3Transformer3DModel": ALL_TOKENS,
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
NO_ATTENTION = "no attention of its own in the first block"
LACKS |= {
    name: {**LACKS[name], "modulation": NO_ATTENTION}
    for name in ("HeliosTransformer3DModel", "HiDreamImageTransformer2DModel", "PRXTransformer2DModel")
}
LACKS["Flux3Transformer2DModel"] = {**ALL_TOKENS, "modulation": "its attention is not given the stream's tokens"}
LACKS["LuminaNextDiT2DModel"] = {**LACKS.get("LuminaNextDiT2DModel", {}), "modulation": NO_ATTENTION}
LACKS |= {name: {**LACKS.get(name, {}), "attention": reason} for name, reason in DENSE.items()}
# Sounds, patches of two sizes, grids that no argument says.
NO_GRID = (
    "AceStepTransformer1DModel",
    "BriaFiboTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "LongCatAudioDiTTransformer",
    "MiniMaxH3Transformer3DModel",
    "MiniMaxMusic3Transformer1DModel",
    "SanaWMLTX2RefinerTransformer3DModel",
    "StableAudio3DiTModel",
    "StableAudioDiTModel",
)
# Convolutions over the tokens, masks of tokens against tokens, positions in an order of their own.
PLACES = (
    "AceStepTransformer1DModel",
    "Ideogram4Transformer2DModel",
    "AllegroTransformer3DModel",
    "AnyFlowFARTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "HeliosTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "QwenImage21Transformer2DModel",
    "SanaTransformer2DModel",
    "SanaVideoTransformer3DModel",
    "SanaWMTransformer3DModel",
    "StableAudio3DiTModel",
    "OmniGenTransformer2DModel",
)
LACKS |= {name: {**LACKS.get(name, {}), "grid": "the latent's tokens do not lie on a grid"} for name in NO_GRID}
LACKS |= {name: {**LACKS.get(name, {}), "along": "tokens"} for name in PLACES}
# Classes that are refused as a whole.
REFUSED = {
    "Cosmos3OmniTransformer": "text, video, sound and actions are one sequence without a batch axis",
    "RFD4ProteinaTransformer": "expected a denoiser whose forward takes hidden_states or sample",
}


def some(names: Sequence[str], which: int) -> list[str]:
    """Those that people use most, and a quarter of the others, another one for each number.

    `python -m tests.families` takes all.
    """
    return [name for at, name in enumerate(names) if name in MOST_USED or (at + which) % 4 == 0]
