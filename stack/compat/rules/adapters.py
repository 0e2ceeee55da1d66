"""Clashes of adapters with rounded weights, with other wrappers of the linears, and with calls."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

LEAST_SHARE = 0.9  # of an update that has to survive being rounded

MERGE_INTO_ROUNDED = Rule(
    "merge-into-rounded",
    "an adapter merged into rounded weights",
    "A distilled update is small beside the weights, and one that is smaller than their rounding step is rounded away "
    "when it is merged. Libraries warn (peft for bitsandbytes), give wrong weights, or raise.",
    (
        Evidence(
            "an update of 0.3 % of int8 weights is 0.4 of their rounding noise: 0.5 % of it would survive",
            "`stack.bounds.merged_share`, and the table in [adapters](adapters.md)",
        ),
        Evidence("fused in fp32 before rounding, all of the same update is left", "[adapters](adapters.md)"),
    ),
    "Adapters are fused in fp32 before anything is rounded, whatever the order of the calls. On weights that are "
    "quantized already the adapter becomes a branch of its own. `merge=True` is refused below the threshold, and "
    "always on packed weights; on 16-bit weights the report tells the share.",
    "plan",
    ("distill", "quantize"),
    {"least_share": LEAST_SHARE},
)
UNSCALED_FP8 = Rule(
    "unscaled-fp8",
    "a few-step adapter on weights cast to fp8 without scales",
    "An adapter distilled on bf16 runs on a base that was cast to e4m3 without scales. With four steps no later step "
    "corrects the error.",
    (
        Evidence(
            "4 steps on a plain e4m3 cast give a grid of artefacts, on a scaled fp8 base they do not",
            "Qwen-Image-Lightning, issue 32",
        ),
        Evidence(
            "e4m3 weights with a scale per output channel are off by 2.6 %", "[quantization](quantization.md#measured)"
        ),
    ),
    "Noted in the plan; load the model in bf16 and let `quantize('fp8')` or `quantize('fp8-weight')` find the scales. "
    "Nothing is changed, since an adapter may have been distilled on that very base.",
    "plan",
    ("distill", "adapter"),
)
UNMERGED_LORA = Rule(
    "unmerged-lora",
    "linears that peft has wrapped",
    "A LoRA that peft has loaded and not merged is a wrapper around each linear. Rounding and updates look linears up"
    " by path, find the wrapper, and would skip the linear inside.",
    (
        Evidence("a LoRA on a qint4 model was silently not applied: 0 linears changed", "sdnext, issue 3408"),
        Evidence(
            "LoRA over weights of torchao, quanto and bitsandbytes raised in 4 more reports",
            "peft, issues 2285 and 3223; diffusers, issues 10492 and 10381",
        ),
    ),
    "Refused: merge it first (`pipe.fuse_lora()`, then `pipe.unload_lora_weights()`), or leave it out and give its "
    "file to `distill()`.",
    "plan",
    ("distill", "quantize", "adapter"),
)
FUSED_PROJECTIONS = Rule(
    "fused-projections",
    "an adapter or rounding under fused q, k, v",
    "diffusers' `fuse_qkv_projections` copies q, k and v into one linear and runs the copy. Changes to the three have"
    " no effect then.",
    (
        Evidence("3 of 4 attention linears are no longer run, while they stay in the module tree", "diffusers, 11903"),
        Evidence("guards that raise are under discussion", "diffusers, pull request 14047"),
    ),
    "Refused: `unfuse_qkv_projections()` first. Sparse attention and caches take fused projections as they are.",
    "plan",
    ("distill", "quantize", "adapter"),
)
TWO_SCHEDULES = Rule(
    "two-schedules",
    "two adapters that each bring a schedule",
    "A few-step adapter is trained for its own noise levels, and a call has only one list of them.",
    (
        Evidence(
            "all 58 cards that ship bring a number of steps of their own, 2 to 16",
            "[adapters](adapters.md#the-cards-that-ship)",
        ),
    ),
    "Refused; an adapter without a schedule (a style) stacks on one that has one.",
    "plan",
    ("distill", "adapter"),
)
MISSING_SCHEDULER = Rule(
    "missing-scheduler",
    "an adapter whose scheduler diffusers does not have",
    "Some adapters are trained for a sampler of their authors. With another one their few steps give wrong pictures.",
    (Evidence("4 of the 58 cards that ship need such a sampler", "[adapters](adapters.md#the-cards-that-ship)"),),
    "Refused, by the name of the scheduler.",
    "plan",
    ("distill", "adapter"),
)
ANOTHER_MODEL = Rule(
    "another-model",
    "an adapter made for another model",
    "Names and sizes of linears differ between families, and weights differ between models of a family.",
    (
        Evidence(
            "the 58 cards that ship are for 16 classes of denoisers, 28 of them for some sizes of a class only",
            "[adapters](adapters.md#the-cards-that-ship)",
        ),
        Evidence("NF4 FLUX.1-Fill with an adapter for FLUX.1-dev: open", "diffusers, issue 10612"),
    ),
    "Another class of denoiser is refused, and so are another pipeline, other sizes, or another number of denoisers "
    "where the card names them. Another model of the same class is said in the plan; keys, ranks and sizes of every "
    "update are checked before anything changes.",
    "plan",
    ("distill", "adapter"),
)
CALL_STEPS = Rule(
    "call-steps",
    "a call with other steps than the adapter's",
    "A few-step adapter predicts long steps. A call that asks for many short ones gets the wrong step each time.",
    (
        Evidence(
            "a 4-step adapter run for 50 steps has 30.4 dB, in its own 4 steps 34.7",
            "[adapters](adapters.md#what-a-call-does)",
        ),
    ),
    "The card's steps are run, with a Python warning and a line in the report; `strict=True` refuses.",
    "run",
    ("distill", "adapter"),
)
CALL_SCHEDULE = Rule(
    "call-schedule",
    "noise levels of a call on top of the adapter's",
    "Noise levels that are already shifted are shifted again by the scheduler, or replace those the adapter was "
    "trained on.",
    (
        Evidence(
            "noise levels that are shifted a second time leave 28.9 dB of 34.7",
            "[adapters](adapters.md#what-a-call-does)",
        ),
        Evidence(
            "a shift of 3 applied twice moves the middle of four steps from sigma 0.75 to 0.90",
            "sigma = s u / (1 + (s - 1) u)",
        ),
    ),
    "The scheduler is built from the card and holds exactly its noise levels; a call's own are left out, with a Python "
    "warning and a line in the report; `strict=True` refuses.",
    "run",
    ("distill", "adapter"),
)
CALL_GUIDANCE = Rule(
    "call-guidance",
    "guidance on top of distilled guidance",
    "An adapter distilled with guidance already contains it. Guidance of the call would be applied on top, and costs "
    "a second denoiser call on every step.",
    (
        Evidence(
            "guidance of 3.5 on a 4-step adapter leaves 11.8 dB of 28.9, in 2 denoiser calls per step instead of 1",
            "[adapters](adapters.md#what-a-call-does)",
        ),
        Evidence(
            "41 of the 58 cards that ship are for no guidance",
            "[adapters](adapters.md#the-cards-that-ship)",
        ),
    ),
    "Guidance above the card's is left out, with a Python warning and a line in the report; `strict=True` refuses.",
    "run",
    ("distill", "adapter"),
)

ADAPTERS = (
    MERGE_INTO_ROUNDED,
    UNSCALED_FP8,
    UNMERGED_LORA,
    FUSED_PROJECTIONS,
    TWO_SCHEDULES,
    MISSING_SCHEDULER,
    ANOTHER_MODEL,
    CALL_STEPS,
    CALL_SCHEDULE,
    CALL_GUIDANCE,
)
