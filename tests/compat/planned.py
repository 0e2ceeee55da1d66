"""What makes each rule of a plan speak: passes, and how the facts differ from those of a plain FLUX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from stack.attention.sage_attn import SageAttention
from stack.attention.sparse_attn import SparseAttention
from stack.caching.bases import Bases
from stack.caching.cache import Cache
from stack.compat.calibrated_for import conditions
from stack.compile import Compile
from stack.core.errors import StackError
from stack.core.facts import Machine
from stack.core.passes import Pass
from stack.core.plan import explain, make_plan
from stack.distill.adapter import Adapter
from stack.distill.distill import Distill
from stack.models.preexisting import CACHE, CAST, COMPILED, FUSED, LORA, OFFLOADED, PARALLEL
from stack.quant.quantize import Quantize
from stack.quant.rounding.calibrated import FeedbackRounding
from stack.solver.solver import Solver

from ..test_plan import FACTS

HERE = conditions(FACTS)
LARGE = {"image_tokens": 4096}
BASES = Bases("flux", 6, 192, {"image": torch.eye(192)}, made_under=HERE)
CALIBRATED = Cache("svd", full_steps=(0, 9, 20, 35), steps=50, calibrated_for=HERE)
FITTED = Cache("teacache", coefficients=(1.0, 0.0), calibrated_for=HERE)
HALF = {**LARGE, "dtype": "bfloat16"}
SAGE = SageAttention(even_if_slower=True)
SPARSE = SparseAttention(0.35, block=128)
FITTED_SHARES = SparseAttention(max_error=0.1, layers={"blocks.0.attn": (0.3, 0.3, 0.3)}, calibrated_for=HERE)
EIGHT = Distill("shapes-flux-8")
SIXTEEN = Distill("hyper-flux-16")
FED_BACK = Quantize("nf4", feedback=True, rounded=FeedbackRounding({}, ("another adapter",), "cpu", "1 prompt"))
ZEN4 = Machine("cpu", vector="AVX512", fast_bf16=True)
CUDA = Machine("cuda")

PLANNED: dict[str, tuple[Sequence[Pass], dict[str, Any]]] = {
    "merge-into-rounded": ([EIGHT], {"weight_bits": 8, "quantized_by": "torchao"}),
    "unscaled-fp8": ([EIGHT], {"carries": (CAST,)}),
    "unmerged-lora": ([Quantize()], {"carries": (LORA,)}),
    "fused-projections": ([EIGHT], {"carries": (FUSED,)}),
    "two-schedules": ([EIGHT, Adapter("shapes-flux-4")], {}),
    "missing-scheduler": ([Distill("tdd-sdxl")], {}),
    "another-model": ([Distill("accvideo-5")], {}),
    "rounded-twice": ([Quantize()], {"weight_bits": 4, "quantized_by": "bitsandbytes"}),
    "rows-too-few": ([Quantize()], {"image_tokens": 16}),
    "rounded-elsewhere": ([FED_BACK], {}),
    "offloaded-modules": ([Quantize()], {"carries": (OFFLOADED,)}),
    "gate-threshold": ([Quantize("nf4"), Cache("first-block")], {}),
    "noise-in-differences": ([Quantize(), Cache("svd")], {}),
    "narrow-gaps": ([Quantize(), Cache("svd", full_steps=(0, 1, 9, 20, 35), steps=50)], {}),
    "high-order": ([Quantize(), Cache("taylorseer-published", full_steps=(0, 9, 20, 35), steps=50)], {}),
    "calibrated-at-other-precision": ([Quantize(), CALIBRATED], {}),
    "fitted-elsewhere": ([Quantize(), FITTED], {}),
    "basis-turned": ([Quantize(), Cache("svd", bases=BASES)], {}),
    "few-steps": ([EIGHT, Cache("svd")], {}),
    "distilled-trajectory": ([SIXTEEN, Cache("svd")], {}),
    "calibrated-elsewhere": ([CALIBRATED], LARGE),
    "calibrated-for-other-steps": ([CALIBRATED], {"steps": 28}),
    "even-steps": ([Cache("svd-published")], {}),
    "sampler-not-plain": ([Cache("predictor-corrector")], {"sampler": "noise is added on every step"}),
    "more-than-the-latent": ([Cache("easycache-published")], {"latent": (12, 36)}),
    "solver-under-adapter": ([EIGHT, Solver(5)], {}),
    "solver-sampler": ([Solver(6)], {"sampler": "noise is added on every step"}),
    "solver-needs-pipeline": ([Solver(6)], {"pipeline": False}),
    "sparse-does-not-pay": ([SparseAttention(0.5)], {"image_tokens": 256}),
    "slow-dense-calls": ([SPARSE], {**HALF, "image_tokens": 4096, "machine": ZEN4}),
    "no-step-left-sparse": ([SPARSE], {**LARGE, "steps": 2}),
    "shares-fitted-elsewhere": ([FITTED_SHARES], LARGE),
    "few-dense-steps": ([SIXTEEN, SPARSE], LARGE),
    "sparse-under-cache": ([SPARSE, Cache("svd")], LARGE),
    "switch-under-cache": ([SPARSE, Cache("taylorseer-published")], LARGE),
    "attention-cached-and-sparse": ([SPARSE, Cache("pab")], LARGE),
    "sage-on-rounded-linears": ([Quantize(), SAGE], HALF),
    "ends-in-eight-bits": ([SAGE, SPARSE], HALF),
    "fp16-sums": ([SAGE, Compile()], {**HALF, "machine": Machine("cuda", fp16_sums=True)}),
    "compiled-before": ([Cache("svd")], {"carries": (COMPILED,)}),
    "two-caches": ([Cache("svd")], {"carries": (CACHE,)}),
    "split-tokens": ([Cache("toca")], {"carries": (PARALLEL,)}),
    "cuda-graphs": ([Compile("reduce-overhead"), Cache("svd")], {"machine": CUDA}),
    "gate-reads-device": ([Cache("first-block")], {"machine": CUDA}),
    "rounded-eagerly": ([Quantize()], {"machine": CUDA}),
    "sparse-breaks-graph": ([SPARSE, Compile()], LARGE),
    "fewer-tokens": ([Cache("fastcache-published-merge")], {}),
}


def told(passes: Sequence[Pass], changes: dict[str, Any]) -> str:
    """The plan in words, or why there is none."""
    try:
        return explain(make_plan(replace(FACTS, **changes), passes))
    except StackError as error:
        return str(error)
