"""Clashes of sparse attention with shapes, schedules, caches and processors."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

# Dropping blocks always costs some of the picture, and the pooled remainder some time that the constants of
# `stack.attention.cost` do not hold; attention is about a third of a denoiser, so that 1.25x here is 1.07x there. Less
# is not worth it.
MARGIN = 1.25
FEWEST_DENSE = 0.25  # share of a distilled schedule's steps that stay dense

SPARSE_DOES_NOT_PAY = Rule(
    "sparse-does-not-pay",
    "sparse attention on too few tokens",
    "Finding the map and computing in blocks costs time that few tokens do not give back, and dropped blocks always "
    "cost some of the picture.",
    (
        Evidence(
            "attention is about a third of a denoiser, so that 1.25x there is 1.07x in all",
            "`stack.attention.cost`, measured on 2 CPU cores",
        ),
        Evidence(
            "half of the blocks at 1,040 tokens: 1.05x predicted for attention",
            "[the comparison](compare/compare-sparse.json)",
        ),
    ),
    "Attention stays dense, and the plan gives the predicted factor; `even_if_slower=True` asks for it all the same.",
    "plan",
    ("sparse_attn",),
    {"least_speedup_of_attention": MARGIN},
)
SLOW_DENSE_CALLS = Rule(
    "slow-dense-calls",
    "dense steps and layers beside sparse ones, by a slower kernel than there is",
    "Sparse attention leaves some steps and calls dense. On processors with AVX-512 BF16 and no AMX torch computes "
    "these at the speed of fp32.",
    (
        Evidence(
            "torch's attention takes 2.6 times as long as two matrix products at 4,112 tokens and heads of 64, 3.2 "
            "times at heads of 128",
            "[attention by length](sparse.md#what-it-is-worth), bf16, a Zen 4 core",
        ),
    ),
    "`dense_attn()` is added by the plan; `dense_attn('torch')` leaves it out.",
    "plan",
    ("sparse_attn", "dense_attn"),
)
NO_STEP_LEFT_SPARSE = Rule(
    "no-step-left-sparse",
    "sparse attention on a schedule without steps to spare",
    "The first steps fix the layout and the last one the details, and stay dense. A short schedule has no others.",
    (Evidence("of 4 steps 1 stays dense, of 8 steps 2", "Radial attention and FusionX on few-step Wan adapters"),),
    "Attention stays dense, and the plan says that 0 steps would be sparse.",
    "plan",
    ("distill", "sparse_attn"),
)
FEW_DENSE_STEPS = Rule(
    "few-dense-steps",
    "too few dense steps on a distilled schedule",
    "A step of a distilled schedule carries as much of the picture as five to ten of the base's: a tenth of them "
    "dense, as on long schedules, is too little.",
    (
        Evidence(
            "of 4 steps 1 stays dense, of 8 steps 2: a quarter, rounded up",
            "Radial attention and FusionX on few-step Wan adapters",
        ),
    ),
    "On a distilled schedule the dense steps at its start are raised until a quarter of all steps is dense.",
    "plan",
    ("distill", "sparse_attn"),
    {"least_dense_share": FEWEST_DENSE},
)
SHARES_FITTED_ELSEWHERE = Rule(
    "shares-fitted-elsewhere",
    "shares of blocks that were fitted on another model, adapter or size",
    "How many blocks a layer needs for an error follows from what it attends to. Another model, adapter or picture "
    "size attends otherwise.",
    (
        Evidence(
            "for an error of 10 % the six layers of one model keep 8 to 45 % of the blocks",
            "shapes-flux-128, one prompt, 8 steps",
        ),
    ),
    "The shares are left out and the budget that they were fitted for is measured in every call; `fit_shares(prompts)` "
    "fits them again. The plan says what differs.",
    "plan",
    ("sparse_attn",),
)
SPARSE_UNDER_CACHE = Rule(
    "sparse-under-cache",
    "a cache over sparse attention",
    "What a full step computes sparsely is what the cached steps after it carry on: the error of one map lasts for a "
    "whole run.",
    (
        Evidence(
            "sparse attention alone has 27.6 dB, with TeaCache over it 22.7, with EasyCache 27.3",
            "EasyCache, HunyuanVideo 720p with SVG: 1.90x, 3.18x, 3.33x",
        ),
    ),
    "Said in the plan; `calibrate(prompts, held_out)` on the sparse stack, then nothing is said. The cost depends on "
    "the schedule or gate, not on the sparsity.",
    "plan",
    ("sparse_attn", "cache"),
)
SWITCH_UNDER_CACHE = Rule(
    "switch-under-cache",
    "a cache across a change from dense to sparse steps, or of precision",
    "Sparse attention errs alike on neighbouring steps, and not at all on the dense steps at both ends. A difference "
    "taken across that switch holds the whole error of the dropped blocks beside what has changed in time.",
    (
        Evidence(
            "half of the blocks: 4 to 10 % of the last hidden state is the same error on every sparse step, 0.5 % "
            "differs between neighbours, and a dense step has neither",
            "[sparse attention](sparse.md#under-a-cache), shapes-flux and shapes-video",
        ),
        Evidence(
            "`svd` in 8 to 50 steps: forecasts that go on across the switch have 0.2 to 2.8 dB more than reuse until "
            "the next full step",
            "[sparse attention](sparse.md#under-a-cache), shapes-flux and shapes-video",
        ),
    ),
    "A schedule of even gaps gets its full steps moved, as many as before, so that both switches are on one, and there "
    "differences start anew, as they do under a gate. Those of other schedules go on: their full steps are far apart. "
    "No error of a forecast is measured over a switch.",
    "plan",
    ("sparse_attn", "quantize", "cache"),
)
ATTENTION_CACHED_AND_SPARSE = Rule(
    "attention-cached-and-sparse",
    "a cache of attention beside sparse attention",
    "Both save the same work. What sparse attention has left is all that the cache can skip, and it skips the steps "
    "that sparse attention would have made faster.",
    (
        Evidence(
            "attention is about a third of a denoiser: skipping all of it is 1.5x at most",
            "`stack.attention.cost`, measured on 2 CPU cores; Amdahl's law",
        ),
    ),
    "Said in the plan, with the share of attention that is left; another site skips the MLPs as well.",
    "plan",
    ("sparse_attn", "cache"),
)
MASKED_ATTENTION = Rule(
    "masked-attention",
    "sparse or 8-bit attention under a mask",
    "A padded prompt or a condition comes with an attention mask, which neither a block map nor SageAttention's "
    "kernel holds; padded text, hidden from all queries alike, is no part of a map.",
    (
        Evidence(
            "0 calls are sparse whose mask hides more than text; SageAttention's backend raises on all of them, as "
            "padded batches of Qwen-Image show",
            "diffusers' attention backends",
        ),
    ),
    "A mask that hides nothing is dropped where it can be looked into, one that hides text is followed by sparse "
    "attention. Other calls stay dense, bit for bit, and the report counts them by reason.",
    "run",
    ("sage_attn", "sparse_attn"),
)
OTHER_PROCESSORS = Rule(
    "other-processors",
    "attention that does not go through torch",
    "A layer's own processor is left where it is and its call of torch's attention answered. One that calls another "
    "library in its place (SageAttention, FlashAttention as diffusers' back end) leaves nothing to answer.",
    (
        Evidence(
            "1 function of torch is answered, in the layers of 1 model; a patch of all attention at once reached the "
            "VAE and the text encoder, and raised",
            "diffusers, issue 11168",
        ),
    ),
    "Such layers stay dense, and the report counts their calls; a back end that goes through torch computes the dense "
    "calls and not the sparse ones.",
    "apply",
    ("sage_attn", "sparse_attn"),
)

SPARSE = (
    SPARSE_DOES_NOT_PAY,
    SLOW_DENSE_CALLS,
    NO_STEP_LEFT_SPARSE,
    FEW_DENSE_STEPS,
    SHARES_FITTED_ELSEWHERE,
    SPARSE_UNDER_CACHE,
    SWITCH_UNDER_CACHE,
    ATTENTION_CACHED_AND_SPARSE,
    MASKED_ATTENTION,
    OTHER_PROCESSORS,
)
