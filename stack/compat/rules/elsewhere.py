"""Known clashes that cannot occur here, and why: what is missing, or how the stack is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotHere:
    """One of them.

    Attributes:
        clash: what others ran into.
        source: where.
        why: what rules it out here.
    """

    clash: str
    source: str
    why: str


ELSEWHERE = (
    NotHere(
        "an adapter fused after rounding because of the order of calls",
        "diffusers, issue 10492",
        "passes are sorted: adapter, rounding, attention, compiler, cache",
    ),
    NotHere(
        "an adapter that changes no layer and says nothing",
        "sdnext, issue 3408",
        "keys are checked before anything changes, and the summary counts the linears",
    ),
    NotHere(
        "an adapter at scale 0 that is not the quantized base bit for bit",
        "unsloth, which tests for it",
        "a branch beside the weights adds exact zeros (`stack.distill.side`)",
    ),
    NotHere(
        "LoRA layers that need gradients on packed weights",
        "diffusers, issue 10381",
        "a branch has buffers, and is no part of peft",
    ),
    NotHere(
        "rounding calibrated on trajectories that a cache has thinned out",
        "Q&C (arXiv 2503.02508)",
        "calls are recorded with a recorder in the cache's place",
    ),
    NotHere(
        "channel balance (SmoothQuant) that an adapter's input misses",
        "SmoothQuant (arXiv 2211.10438)",
        "a balanced linear divides its input itself; a branch reads it before",
    ),
    NotHere(
        "a hook that is put on after an uncached run and gets no context",
        "diffusers' hook registry",
        "no hooks: instances are wrapped, and the clock follows calls of any age",
    ),
    NotHere(
        "a gate's decision inside compiled code",
        "cache-dit, issue 76; first-block cache with `fullgraph=True`",
        "the cache stands around the compiled blocks and is never traced",
    ),
    NotHere(
        "a compiled model that hides its class and attributes",
        "`torch.compile(model)`",
        "blocks are compiled in place; an `OptimizedModule` is refused by its class",
    ),
    NotHere(
        "a patch of attention that reaches the VAE and the text encoder",
        "diffusers, issue 11168",
        "processors are exchanged one by one, on the denoiser's own layers",
    ),
    NotHere(
        "processors that forget fused projections or the backend's settings",
        "diffusers, issue 11903",
        "the sparse processor takes q, k and v as diffusers does, and keeps the inner one's settings",
    ),
    NotHere(
        "token choice by attention scores (ToCa) under fused or sparse kernels",
        "ToCa (arXiv 2410.05317)",
        "tokens are chosen at random or by their values' norms, which need no scores",
    ),
    NotHere(
        "block maps that grow stale over the steps that a cache skips",
        "methods that keep masks from step to step",
        "maps are made anew in every call",
    ),
    NotHere(
        "running a checkpoint trained with sparse attention densely",
        "FastWan's VSA checkpoints",
        "none is of a family of this project; their cards are refused as made for another model",
    ),
    NotHere(
        "SageAttention as noise under a cache",
        "no measurement found",
        "no backend of this project rounds inside attention",
    ),
    NotHere(
        "state offloaded to the host, taken for fp8 noise",
        "TaylorSeer, issue 5",
        "moving state changes no bit of it (`tests/caching/test_placement.py`)",
    ),
    NotHere(
        "variance that drifts when a cached trajectory is quantized, and its correction per step",
        "Q&C (arXiv 2503.02508)",
        "no correction of its own: the calibrated schedule and the noise floor are what answers it",
    ),
    NotHere(
        "a quantized model whose forward a cache did not get hold of: no speed-up",
        "TeaCache, issue 31",
        "what is wrapped is what the passes below left; a cache that skips nothing says so",
    ),
    NotHere(
        "hidden states that torchao wants contiguous, and group offloading of its weights",
        "diffusers, pull requests 13081 and 13276",
        "Qwen-Image is no family of this project; offloaded models are refused (offloaded-modules)",
    ),
    NotHere(
        "a cache that saves less since steps are cheaper: 1.11x to 1.92x on 4-bit models",
        "nunchaku, pull request 810",
        "no clash but a smaller gain: `ditstack compare` sets the whole against the product of its parts",
    ),
    NotHere(
        "compiling that makes a cached model slower",
        "sglang, issue 19471",
        "`ditstack compare` tries the base both ways, and compiles stacks where it compiles the base",
    ),
    NotHere(
        "a cache that loses to fewer steps in the same time (25 plain steps 11.0 s, first-block cache 14.0 s)",
        "diffusers' own test",
        "every comparison has that control as a row",
    ),
    NotHere(
        "a cache that is co-trained with its distilled model",
        "1.x-Distill (arXiv 2604.04018), DisCa",
        "no cache here is trained",
    ),
)
