"""Clashes of quantization with the model, and with what was calibrated or installed before it."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

# Rows times features below which rounding the rows costs what the int8 product gains (AVX2, fp32 = 1: 128 rows of 512
# features 1.16, 256 of 192 0.6 to 1.0, 16 of 512 0.6).
SMALLEST_GAINING_INPUT = 65_536

ROUNDED_TWICE = Rule(
    "rounded-twice",
    "a model that is quantized already",
    "Rounded weights that are rounded again have both errors, and no fewer bytes than the coarser of the two.",
    (
        Evidence(
            "rounding rounded weights adds error and no speed: 0.9 % per linear of int8 on top of 9.1 % of NF4",
            "[quantization](quantization.md#measured)",
        ),
    ),
    "Refused: load the model unquantized, or leave `quantize()` out.",
    "plan",
    ("quantize",),
)
ROWS_TOO_FEW = Rule(
    "rows-too-few",
    "int8 on too few tokens",
    "Activations are rounded in every call, row by row. With few or short rows that costs as much as the faster "
    "product gains.",
    (
        Evidence(
            "int8 runs at 0.6x on 16 rows of 512 features, at 1.16x on 128 rows (AVX2, fp32 = 1)",
            "`stack.quant.selection`, measured",
        ),
    ),
    "Noted in the plan for the image stream; linears of a text stream that short stay in floating point.",
    "plan",
    ("quantize",),
    {"rows_times_features": SMALLEST_GAINING_INPUT},
)
ROUNDED_ELSEWHERE = Rule(
    "rounded-elsewhere",
    "calibrated rounding under another adapter",
    "Error feedback is computed from the weights and the activations at hand. An adapter fused afterwards, or "
    "exchanged, changes both.",
    (
        Evidence(
            "error feedback is worth 11.0 dB over plain NF4 (47.7 against 36.7), on its own weights",
            "[sensitivity](sensitivity.md#error-feedback)",
        ),
    ),
    "Refused under other adapters or on another device: `fit_rounding(prompts)` again. A branch beside the weights "
    "(`switchable=True`) comes after their rounding and leaves it as it is.",
    "plan",
    ("distill", "quantize"),
)
OFFLOADED_MODULES = Rule(
    "offloaded-modules",
    "weights that are moved by hooks",
    "Offloading keeps lists of the modules that it moves, and copies of their weights. A linear that is replaced "
    "afterwards is in no list and is not moved; a weight that is changed is overwritten with its old copy.",
    (
        Evidence(
            "group offloading of torchao weights was broken until pull request 13276 (April 2026)",
            "diffusers, pull request 13276",
        ),
        Evidence(
            "`freeze()` frees it without moving anything: 1,152 MB with the originals of an NF4 model, 548 without",
            "[quantization](quantization.md#memory-saving-loading)",
        ),
    ),
    "Refused: load the model without these hooks; `quantize()` and `freeze()` free memory as well.",
    "plan",
    ("distill", "quantize", "adapter"),
)

QUANTIZATION = (ROUNDED_TWICE, ROWS_TOO_FEW, ROUNDED_ELSEWHERE, OFFLOADED_MODULES)
