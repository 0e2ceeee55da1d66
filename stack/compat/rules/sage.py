"""Clashes of 8-bit attention with what else rounds, and with the settings of a process."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

SAGE_ON_ROUNDED_LINEARS = Rule(
    "sage-on-rounded-linears",
    "8-bit attention on rounded linears",
    "Queries and keys come out of linears that have rounded their inputs, and are rounded again. With fp8 weights and "
    "SageAttention 2 users got black pictures. Here every product of attention is kept within fp16, and under a "
    "cache an output that is not finite or constant is never returned unnoticed.",
    (
        Evidence(
            "shapes-dit with int8 linears has 50.2 dB, with 8-bit attention 56.4, with both 50.6",
            "[8-bit attention](sparse.md#8-bit-attention)",
        ),
        Evidence(
            "1 of 4 combinations of Wan 2.1 14B gives a picture: weights and model in fp16; fp8 in either is black",
            "thu-ml/SageAttention, issue 221, version 2.1.1 on an RTX 5090",
        ),
    ),
    "Said in the plan. Nothing is changed; `ditstack compare` has each of them left out.",
    "plan",
    ("quantize", "sage_attn"),
)
ENDS_IN_EIGHT_BITS = Rule(
    "ends-in-eight-bits",
    "first and last steps that another pass keeps exact, under 8-bit attention",
    "The steps at both ends decide most of a picture. Sparse attention leaves them dense and `quantize(ends=...)` "
    "computes them more precisely; 8-bit attention is on all steps.",
    (
        Evidence(
            "shapes-dit with int8 linears between exact ends has 54.0 dB, with 8-bit attention on all steps as well; "
            "half of the blocks between dense ends 30.6 dB, in 8 bits as well",
            "[8-bit attention](sparse.md#8-bit-attention)",
        ),
    ),
    "Said in the plan. Leave `sage_attn()` out where the ends have to be exact.",
    "plan",
    ("quantize", "sage_attn", "sparse_attn"),
)
FP16_SUMS = Rule(
    "fp16-sums",
    "8-bit attention, a compiler, and products added up in fp16",
    "A process may let CUDA add up fp16 products in fp16 (`torch.backends.cuda.matmul.allow_fp16_accumulation`). Each "
    "two of the three work, all three gave noise: compiled code keeps more digits than the sums were tuned to.",
    (
        Evidence(
            "FLUX with all 3 is noise, with any 2 of them it is not",
            "thu-ml/SageAttention, issue 162; Comfy-Org/ComfyUI, issue 8689",
        ),
    ),
    "Said in the plan. The setting is of the whole process, so it is left to you.",
    "plan",
    ("sage_attn", "compile"),
)

SAGE = (SAGE_ON_ROUNDED_LINEARS, ENDS_IN_EIGHT_BITS, FP16_SUMS)
