"""Clashes of caches with quantization: thresholds, differences, and what was fitted under another precision."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

LARGEST_NOISE_GAIN = 2.0  # of a first-order forecast at its longest reach
WIDEST_ANGLE = 0.3  # sin(theta) up to which a basis is kept: 9 % of its energy may leave it
HIGHEST_ROUNDED_ORDER = 1  # of a forecast from rounded features whose noise is not known

GATE_THRESHOLD = Rule(
    "gate-threshold",
    "a gate's threshold under quantization",
    "Rounding adds noise to the change that a gate measures from step to step. With the threshold of the unquantized "
    "model fewer steps are cached.",
    (
        Evidence(
            "the same gate needs 0.12 on quantized FLUX where 0.08 does unquantized",
            "ParaAttention (first-block cache with dynamic fp8); unsloth ships the same two numbers",
        ),
    ),
    "Noted in the plan. `calibrate(prompts, held_out)` finds the threshold on the quantized stack, "
    "`fit_gate(prompts)` the gate's ratios or polynomial; after that there is no note.",
    "plan",
    ("quantize", "cache"),
)
NOISE_IN_DIFFERENCES = Rule(
    "noise-in-differences",
    "forecasts from rounded activations",
    "Activations are rounded anew on every step, so a difference of two full steps holds the noise of both. Rounded "
    "weights alone are harmless: their error is smooth in the input and cancels in a difference.",
    (
        Evidence(
            "1.2 % of noise per forward beside 2 % of change per step makes extrapolated frames flicker",
            "cosmos-framework, pull request 247: caches were switched off under fp8",
        ),
        Evidence(
            "2 % of noise: Taylor's order 2 has 36.7 dB plain and 37.6 shrunk, reuse 35.3",
            "[methods](methods.md#under-noise)",
        ),
        Evidence(
            "int8 on `shapes-flux`: 0.58 to 1.04 % at the last hidden state is random",
            "[sensitivity](sensitivity.md#noise-floor)",
        ),
    ),
    "Each difference is multiplied by signal / (signal + noise) and taken over gaps that are wide enough "
    "(`stack/compat/noise.py`), in a principal subspace without the directions that are mostly noise. Taylor's "
    "differences over step counts become Newton's over time. The noise is estimated from the number of bits until "
    "`noise_floor(prompts)` has measured it. A cache that was calibrated on finished pictures is not changed: there "
    "shrinking gains 0.0 to -0.6 dB.",
    "run",
    ("quantize", "cache"),
)
NARROW_GAPS = Rule(
    "narrow-gaps",
    "differences of neighbouring steps, used far away",
    "The forecast of the j-th cached step from a first difference over a gap of N steps contains the noise of the "
    "later full step 1 + j / N times, and that of the earlier j / N times. After a warm-up of full steps N is 1.",
    (
        Evidence(
            "gap 1 used 4 steps away gains 6.4 times the noise, gap 5 at most 2.0",
            "sqrt((1 + j / N)^2 + (j / N)^2), for the noise of cosmos-framework, pull request 247",
        ),
    ),
    "Noted in the plan, with the gain of this schedule. After `noise_floor(prompts)` full steps that are too close "
    "for the noise are left out of differences; a warm-up of 1, or a calibrated schedule, has no such gap.",
    "plan",
    ("quantize", "cache"),
    {"largest_noise_gain": LARGEST_NOISE_GAIN},
)
HIGH_ORDER = Rule(
    "high-order",
    "a high order on rounded activations",
    "The noise in a difference of order m grows like (j / N)^m, which outweighs the gain from a higher order.",
    (
        Evidence(
            "order 2 used 4 steps away gains 30 times the noise at gap 1 and 3.4 at gap 5, order 1 6.4 and 2.0",
            "sqrt(sum of w^2) for the weights of Newton's form",
        ),
        Evidence(
            "the second skipped step in a row doubles the noise of an extrapolated difference",
            "cosmos-framework, pull request 247",
        ),
        Evidence("Taylor on an fp8 checkpoint: reported as noise, not resolved", "TaylorSeer, issue 5"),
    ),
    "Each order is shrunk on its own; with fewer than 7 bits the order is lowered to the threshold.",
    "plan",
    ("quantize", "cache"),
    {"highest_order": HIGHEST_ROUNDED_ORDER},
)
CALIBRATED_AT_OTHER_PRECISION = Rule(
    "calibrated-at-other-precision",
    "a schedule calibrated under another precision or sparsity",
    "Errors of cache and rounding are not independent: what is best for one alone is not for both.",
    (
        Evidence(
            "naive together lose 11.99 FID where rounding alone loses 0.76 and the cache 4.71; a schedule chosen "
            "on the quantized model recovers 6.9 of it",
            "CacheQuant, CVPR 2025 (15.36 to 8.47 FID)",
        ),
        Evidence(
            "DiT-XL/2 in W8A8: FID 13.67 naively together, 5.45 and 5.21 alone", "Q&C, ICLR 2026 (arXiv 2503.02508)"
        ),
    ),
    "The schedule is kept, since on `shapes-flux` one found under int8 kept its quality without; the plan says it was "
    "found elsewhere, and `calibrate()` again finds it on the stack as it is.",
    "plan",
    ("quantize", "sparse_attn", "cache"),
)
FITTED_ELSEWHERE = Rule(
    "fitted-elsewhere",
    "ratios, polynomials, maps or bases of other weights",
    "What was fitted on runs of one model describes its features. A quantized or distilled model has others.",
    (
        Evidence(
            "a schedule of residual ratios of a 4-step model (1.37, 0.97, 0.87) is nothing like a 50-step one's, "
            "near 1",
            "diffusers' MagCache documentation, for FLUX.1-schnell",
        ),
        Evidence(
            "the published map in place of one fitted here is off by 5 to 50 % of a block's output",
            "[methods](methods.md#fastcache)",
        ),
    ),
    "Everything fitted names the facts it was fitted under. Another family, depth or width is refused; another "
    "adapter, schedule, precision or sparsity is said in the plan: fit again on the stack as it is.",
    "plan",
    ("distill", "quantize", "sparse_attn", "cache"),
)

BASIS_TURNED = Rule(
    "basis-turned",
    "a basis found under another precision",
    "Rounding changes the features, and with them the principal subspace that was found offline.",
    (
        Evidence(
            "sin(theta) <= 2 |E| / (l_k - l_(k+1)), |E| <= (2 e sqrt(l_1) + e^2) trace for a relative error e",
            "Davis and Kahan 1970 in the form of Yu, Wang and Samworth 2015; `stack.bounds.sin_theta_bound`",
        ),
    ),
    "The angle is bounded from the noise floor (measured, or of the bits) and the gap that was stored with the basis. "
    "Up to the threshold the basis is carried; above it one subspace iteration on every full step refreshes it.",
    "plan",
    ("quantize", "cache"),
    {"widest_angle": WIDEST_ANGLE},
)

ROUNDED_CACHES = (
    GATE_THRESHOLD,
    NOISE_IN_DIFFERENCES,
    NARROW_GAPS,
    HIGH_ORDER,
    CALIBRATED_AT_OTHER_PRECISION,
    FITTED_ELSEWHERE,
    BASIS_TURNED,
)
