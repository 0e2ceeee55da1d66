"""Clashes of cached state with what happens between and within requests."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

OTHER_CONDITIONS = Rule(
    "other-conditions",
    "state made under other weights, shapes or precision",
    "An adapter swap, `load_state_dict`, an edit in place or a new resolution leaves features in the cache that the "
    "model would no longer make.",
    (
        Evidence(
            "0 states are used whose stamp differs: weights are compared by objects, addresses and versions, prompts "
            "by a 64-bit sum over their content, which misses a change with a chance of 2^-60",
            "`stack.runtime.fingerprint`",
        ),
    ),
    "The state is dropped, the step runs in full, and the report counts it.",
    "run",
    ("cache",),
)
NOT_A_NUMBER = Rule(
    "not-a-number",
    "a feature that is no number",
    "NaN, infinity, or a value beyond the dtype that state is kept in would be carried into every cached step.",
    (Evidence("1 such value spoils all cached steps of a run; float16 ends at 65,504", "IEEE 754"),),
    "Noticed on the next step, from one number per full step: the state is dropped, that step runs in full, and the "
    "report says so.",
    "run",
    ("cache",),
)
UNNAMED_BRANCHES = Rule(
    "unnamed-branches",
    "guidance branches that a pipeline does not name",
    "Two calls of a bare denoiser per step that do not name their branch look like two requests, and neither "
    "continues.",
    (Evidence("0 steps are cached where the two calls of a step have no `cache_context`", "diffusers, issue 12760"),),
    "Every call runs in full, and the report says why. Name the branches with "
    "`transformer.cache_context('cond')`, or run them as one batch.",
    "run",
    ("cache",),
)
STEP_UNKNOWN = Rule(
    "step-unknown",
    "a call whose step is not known",
    "Full steps, forecasts and the corrector depend on which step of the schedule a call is. That is not known for a "
    "loop of another length, another pipeline's scheduler, or samples at different timesteps.",
    (
        Evidence(
            "14 calls were taken for 11 requests where EDM noise levels were compared with timesteps",
            "DiT behind DPM-Solver++, before the step was asked of the scheduler",
        ),
    ),
    "The call runs in full, the cache keeps nothing of it, and the report says why.",
    "run",
    ("cache",),
)
FEWER_TOKENS = Rule(
    "fewer-tokens",
    "tokens that run without the others",
    "FastCache's token modules run blocks for some tokens only. These lack the others as context.",
    (
        Evidence(
            "shapes-flux, 50 steps: 24.9 dB at 1.06x with tokens, 20.2 dB at 1.02x with merging; 12 plain steps 38.6",
            "[every row](benchmarks/caches-shapes-flux.md), medians of 16 prompts",
        ),
    ),
    "Noted in the plan: `parts=('gate',)` runs all tokens.",
    "plan",
    ("cache",),
)

STATE = (OTHER_CONDITIONS, NOT_A_NUMBER, UNNAMED_BRANCHES, STEP_UNKNOWN, FEWER_TOKENS)
