"""Clashes with compilers, hooks and caches that other libraries put on a model."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

COMPILED_BEFORE = Rule(
    "compiled-before",
    "a model that was compiled before the stack",
    "A block compiled in place is traced again with whatever is wrapped around its forward: the decisions of a cache "
    "are Python, break the graph or are frozen into it, and compile anew on every step.",
    (
        Evidence(
            "computed steps fell from 91.8 to 71.2 ms once the cache called the compiled block instead of being traced",
            "unsloth, Qwen-Image",
        ),
    ),
    "Refused: load the model uncompiled. `.compile()` compiles the blocks as the passes below leave them, and the "
    "cache stands around the compiled code.",
    "plan",
    ("compile", "cache"),
)
TWO_CACHES = Rule(
    "two-caches",
    "another cache on the model",
    "diffusers' caches skip blocks by hooks. With two caches on one model each treats the other's forecasts as "
    "computed features.",
    (
        Evidence(
            "1 cache per model: diffusers raises on a second one of its own", "diffusers' `CacheMixin.enable_cache`"
        ),
    ),
    "Refused: `transformer.disable_cache()` first.",
    "plan",
    ("cache",),
)
SPLIT_TOKENS = Rule(
    "split-tokens",
    "tokens split over processes",
    "Under diffusers' context parallelism each process has a part of the tokens between the first block and the head."
    " A cache that chooses tokens, or needs their places on the grid, would see only that part and decide differently"
    " in each process.",
    (
        Evidence(
            "by its own tokens alone, 1 of 2 processes would decide otherwise on 1 of 22 calls of a small FLUX, and on "
            "2 of a small Wan, under a first-block gate: it would skip the blocks that the other one waits for",
            "`tests/living/test_parallel.py`",
        ),
    ),
    "Refused: the sites `tokens` and `fastcache`, the split `band`, and measurements, which belong on one process. "
    "Sparse attention stays dense. Other caches sum what they decide by over the processes.",
    "plan",
    ("sparse_attn", "cache"),
)
CUDA_GRAPHS = Rule(
    "cuda-graphs",
    "CUDA graphs under a cache",
    "A CUDA graph writes its outputs into the same memory on every replay. What a cache keeps of a full step is "
    "overwritten by the next one.",
    (
        Evidence(
            "2 of torch's 5 compile modes record CUDA graphs: reduce-overhead and max-autotune",
            "`torch._inductor.list_mode_options()`, torch 2.13",
        ),
    ),
    "Refused on CUDA: `compile('max-autotune-no-cudagraphs')` or the default mode.",
    "plan",
    ("compile", "cache"),
)
GATE_READS_DEVICE = Rule(
    "gate-reads-device",
    "a gate that waits for the device",
    "A gate decides by a number that the device has to finish first. Nothing more can be queued until then.",
    (Evidence("1 device sync per step, where a schedule has none", "the gate's `.item()`"),),
    "Noted in the plan on an accelerator; a calibrated schedule decides without reading anything.",
    "plan",
    ("cache",),
)
SPARSE_BREAKS_GRAPH = Rule(
    "sparse-breaks-graph",
    "compiled blocks with sparse, 8-bit or another kernel's attention in them",
    "The map and the count of calls are made outside compiled code. An attention layer is a graph of its own, in which "
    "attention is one operator that asks: what is around it in the layer is compiled as well.",
    (
        Evidence(
            "1 graph break per block: two blocks of FLUX are 6 graphs instead of 2, of 203 operations instead of 201",
            "counted by torch._dynamo, torch 2.13",
        ),
        Evidence("a fixed schedule of two compiled graphs needs none", "FlexAttention, where a full graph is wanted"),
    ),
    "Noted in the plan.",
    "plan",
    ("sage_attn", "sparse_attn", "dense_attn", "compile"),
)
RECOMPILE_LIMIT = Rule(
    "recompile-limit",
    "more kinds of blocks than the compiler keeps",
    "Blocks of one class share their compiled code as long as they are built alike. A mixed quantization plan makes "
    "them differ; past its limit the compiler runs the rest uncompiled.",
    (
        Evidence(
            "torch keeps 8 versions of a function; a model with mixed blocks needs about 11",
            "torch's default; unsloth on Z-Image, which raises it to 64 or more",
        ),
    ),
    "Counted while the blocks are wrapped: past the limit the summary warns. The limit is a setting of the whole "
    "process, so it is left to you (`torch._dynamo.config.recompile_limit`).",
    "apply",
    ("quantize", "compile"),
)
ROUNDED_EAGERLY = Rule(
    "rounded-eagerly",
    "rounded activations without a compiler on CUDA",
    "Under `int8` and `fp8` activations are rounded anew before every product, by a dozen small operations. On CUDA "
    "each of them is a launch and a pass over the memory; compiled they are one.",
    (
        Evidence(
            "28 steps of FLUX.1-dev on an H100 take 130 s in torchao's int8 without a compiler, 6.6 s in bf16",
            "sayakpaul/diffusers-torchao",
        ),
        Evidence(
            "CogVideoX-5b on an A100: 550 s in torchao's int8 without a compiler, 177 s with it, 243 s in bf16",
            "sayakpaul/diffusers-torchao",
        ),
        Evidence(
            "a double block of FLUX is 327 operations in bf16, 665 in this project's int8, 963 in torchao's and 639 in "
            "its fp8",
            "counted on tensors without memory, torch 2.13",
        ),
    ),
    "The plan adds `compile()`, unless the stage was asked for: `compile('off')` runs without. Native and torchao's "
    "linears; bitsandbytes rounds inside its own kernels.",
    "plan",
    ("quantize", "compile"),
)

COMPILERS = (
    COMPILED_BEFORE,
    TWO_CACHES,
    SPLIT_TOKENS,
    CUDA_GRAPHS,
    GATE_READS_DEVICE,
    SPARSE_BREAKS_GRAPH,
    RECOMPILE_LIMIT,
    ROUNDED_EAGERLY,
)
