"""Runs SageAttention's kernels under Triton's interpreter and prints how far they are from `sage.reference`, as JSON.

A program of its own: triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import sys

import torch
from sageattention.attn_qk_int8_per_block import forward
from sageattention.attn_qk_int8_per_block_h96 import forward as forward_96
from sageattention.quant_per_block import per_block_int8
from sageattention.quant_per_block_hd96 import per_block_int8_hd96

from stack.attention import sage
from stack.attention.sage import filled, reference, scaled, smoothed


def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What `sageattn` calls; it accepts CUDA tensors alone."""
    rounding, attend = (per_block_int8_hd96, forward_96) if q.shape[-1] == 96 else (per_block_int8, forward)
    int_q, step_q, int_k, step_k = rounding(q, k, tensor_layout="NHD")
    return attend(int_q, int_k, v.half(), step_q, step_k, tensor_layout="NHD", output_dtype=q.dtype)


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def case(queries: int, keys: int, size: int, dtype: str, heads: int = 2) -> dict[str, float]:
    """Relative differences of one call. Keys share an offset of twice their spread."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, heads, size, generator=generator) for n in (queries, keys, keys))
    k = k + 2 * torch.randn(1, 1, heads, size, generator=generator)
    q, k, v = (x.to(getattr(torch, dtype)) for x in (q, k, v))
    k = smoothed(k)
    out = kernel(q, k, v)
    exactly = torch.nn.functional.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v)))
    large = (v + 4) * 4096  # 64 of them add up to more than fp16 holds
    values, unit = scaled(large)
    fits = size in sage.WIDER and keys >= sage.KEYS
    return {
        "tail put right": off(sage.without_tail(q, k, v), exactly.transpose(1, 2)) if fits else 0.0,
        "large": off(kernel(q, k, large), reference(q, k, large, tail_as_zero=True)),
        "guarded": off(kernel(q, *filled(k, values)) * unit, reference(q, *filled(k, large))),
        "reference": off(out, reference(q, k, v, tail_as_zero=True)),
        "reference without tail": off(out, reference(q, k, v)),
        "exact": off(out, exactly.transpose(1, 2)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sage._sage = kernel  # type: ignore[assignment]  # in place of the operator, which is the reference on a CPU
    print(json.dumps([case(*arguments) for arguments in json.loads(sys.argv[1])]))
