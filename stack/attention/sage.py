"""SageAttention 1: attention with 8-bit scores, and what its kernel computes in plain torch.

Zhang et al. 2024 (arXiv 2410.02367). The arithmetic is that of the package `sageattention` 1.0.6: queries and keys are
rounded to int8 with one step per 128 queries and per 64 keys, the softmax is taken in fp32 to base 2, its weights and
the values are multiplied in fp16. On normal inputs the result is about 1.3 % off exact attention (root mean square).

The mean key is subtracted first (`smoothed`). That adds one number to all scores of a query, which leaves the softmax
as it was, and makes the rounding steps much finer where keys share a large offset.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..core.errors import StackError

QUERIES, KEYS = 128, 64  # tokens that share a step
HEAD_SIZES = (64, 96, 128)
DTYPES = (torch.float16, torch.bfloat16)


def sage_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors, without a mask; the same shape and dtype out. One operator when compiled.

    CUDA: the kernel. Elsewhere: `reference`, which is slow and there for tests.

    Raises:
        StackError: the kernel cannot take these inputs (`unfit`), or is not installed.
    """
    if reason := unfit(q, k, v):
        raise StackError(f"SageAttention cannot take these inputs: {reason}; use dense attention here")
    # Not left to the kernel's own function, which subtracts the mean from its caller's keys, in place.
    return _sage(q, smoothed(k), v)


def unfit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """Why the kernel cannot take these (B, S, H, D) tensors, or "" where it can.

    It takes no mask, heads of 64, 96 or 128, fp16 or bf16, tensors whose last dimension is contiguous, and keys in
    whole tiles of 64: it would count keys missing in the last tile as keys with score 0 (10 % off at 272 keys, 29 % at
    77). Values are rounded to fp16, so none may exceed 65,504; that is not looked at, as it would read the device.
    """
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        return f"expected fp16 or bf16 alike, got {', '.join(str(x.dtype).removeprefix('torch.') for x in (q, k, v))}"
    if q.shape[-1] not in HEAD_SIZES:
        return f"expected heads of {', '.join(map(str, HEAD_SIZES))}, got {q.shape[-1]}"
    if k.shape != v.shape or (*q.shape[:1], *q.shape[2:]) != (*k.shape[:1], *k.shape[2:]):
        return f"expected one batch, heads and head size, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if k.shape[1] == 0 or k.shape[1] % KEYS:
        return f"expected keys in whole tiles of {KEYS}, got {k.shape[1]}"
    return "" if q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 else "the last dimension must be contiguous"


def smoothed(k: torch.Tensor) -> torch.Tensor:
    """Keys (B, S, H, D) without their mean over the tokens."""
    return k - k.mean(1, keepdim=True)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tail_as_zero: bool = False) -> torch.Tensor:
    """What the kernel computes, in plain torch; any number of keys, any floating dtype. (B, S, H, D) in and out.

    Args:
        k: smoothed.
        tail_as_zero: count the keys that are missing in the last tile as keys with score 0 and value 0, as the kernel
            does.
    """
    scores = int8_scores(q, k)
    values = v.transpose(1, 2).half().float()
    if tail_as_zero:
        missing = -k.shape[1] % KEYS
        scores, values = F.pad(scores, (0, missing)), F.pad(values, (0, 0, 0, missing))
    weights = torch.exp2(scores - scores.amax(-1, keepdim=True))
    out = weights.half().float() @ values / weights.sum(-1, keepdim=True)
    return out.to(q.dtype).transpose(1, 2).contiguous()


def int8_scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Scores (B, H, queries, keys) over ln 2 from queries and keys that were rounded to int8, fp32."""
    scale = q.shape[-1] ** -0.5 * math.log2(math.e)
    (rounded_q, step_q), (rounded_k, step_k) = rounded(q, QUERIES, scale), rounded(k, KEYS)
    # Sums of 128 products below 2^14 are exact in fp32.
    return rounded_q @ rounded_k.mT * step_q * step_k.mT


def rounded(x: torch.Tensor, block: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S, H, D) times `scale`, as whole numbers (B, H, S, D) of magnitude 127 at most, and their steps (B, H, S, 1).

    Args:
        block: tokens that share a step.
    """
    wide = x.transpose(1, 2).float() * scale
    tokens = wide.shape[2]
    blocks = F.pad(wide, (0, 0, 0, -tokens % block)).unflatten(2, (-1, block))
    step = (blocks.abs().amax((3, 4)) / 127).repeat_interleave(block, 2)[:, :, :tokens, None]
    multiples = wide / step.clamp(min=torch.finfo(torch.float32).tiny)
    return (multiples + torch.where(multiples >= 0, 0.5, -0.5)).trunc(), step


@torch.library.custom_op("ditstack::sage_attention", mutates_args=())
def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if not q.is_cuda:
        return reference(q, k, v)
    try:
        from sageattention import sageattn
    except ImportError as error:
        raise StackError(f"SageAttention is not installed ({error}): pip install 'ditstack[sage]'") from error
    return sageattn(q, k, v, tensor_layout="NHD", smooth_k=False)


@_sage.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
