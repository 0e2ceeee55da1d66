"""SageAttention 1: attention with 8-bit scores, and what its kernel computes in plain torch.

Zhang et al. 2024 (arXiv 2410.02367). The arithmetic is that of the package `sageattention` 1.0.6: queries and keys are
rounded to int8 with one step per 128 queries and per 64 keys, the softmax is taken in fp32 to base 2, its weights and
the values are multiplied in fp16. On normal inputs the result is about 1.3 % off exact attention (root mean square).

What the kernel cannot be given is put right before it:

- The mean key is subtracted (`smoothed`). That adds one number to all scores of a query, which leaves the softmax as
  it was, and makes the rounding steps much finer where keys share a large offset.
- Products with the values are summed up in fp16 over 64 keys, so that values from 1,024 on may overflow. Each channel
  is divided by a power of two, which is exact, and the output multiplied with it (`scaled`).
- Keys that are missing in the last tile would count as keys with score 0 and value 0. The tile is filled with the mean
  key, which is 0 by then, and the mean value (`filled`). A filler weighs no more than the average key, so that on long
  sequences it changes next to nothing. On short ones heads are made wider, by a channel of the values that is 1 for
  fillers alone: it comes out as their softmax mass, by which the output is put right (`without_tail`). Heads of 128
  cannot be wider, and the call is refused. A tail of keys on its own could not be merged with the rest: the kernel does
  not return the log-sum-exp of its scores.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..bounds import filler_share_bound
from ..core.errors import StackError

BITS = 8  # of queries and keys
QUERIES, KEYS = 128, 64  # tokens that share a step
HEAD_SIZES = (64, 96, 128)
DTYPES = (torch.float16, torch.bfloat16)
WIDER = {64: 96, 96: 128}  # heads that have room for one more channel in this size
MOST_FILLED = 1 / 64  # softmax mass of the fillers: as many of them as there are tiles
ANY_NUMBER = KEYS * (KEYS - 2)  # of more keys than these any number is taken
LARGEST = 512.0  # of the scaled values: 64 of them add up to half of the largest fp16


def sage_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors, without a mask; the same shape and dtype out. One operator when compiled.

    CUDA: the kernel. Elsewhere: `reference`, which is slow and there to measure quality.

    Raises:
        StackError: the kernel cannot take these inputs (`unfit`), or is not installed.
    """
    if reason := unfit(q, k, v):
        raise StackError(f"SageAttention cannot take these inputs: {reason}; use dense attention here")
    values, unit = scaled(v)
    # Not smoothed by the kernel's own function, which subtracts the mean from its caller's keys, in place.
    keys = smoothed(k)
    if _fills_little(k.shape[1]):
        return _sage(q, *filled(keys, values)) * unit
    return without_tail(q, keys, values) * unit


def unfit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """Why the kernel cannot take these (B, S, H, D) tensors, or "" where it can.

    It takes no mask, heads of 64, 96 or 128, fp16 or bf16, and tensors whose last dimension is contiguous.
    """
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        return f"expected fp16 or bf16 alike, got {', '.join(str(x.dtype).removeprefix('torch.') for x in (q, k, v))}"
    if k.shape != v.shape or (*q.shape[:1], *q.shape[2:]) != (*k.shape[:1], *k.shape[2:]):
        return f"expected one batch, heads and head size, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if reason := unfit_size(k.shape[1], q.shape[-1]):
        return reason
    return "" if q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 else "the last dimension must be contiguous"


def unfit_size(keys: int, head_dim: int) -> str:
    """Why the kernel cannot take so many keys, or heads of this size; "" where it can."""
    if head_dim not in HEAD_SIZES:
        return f"expected heads of {', '.join(map(str, HEAD_SIZES))}, got {head_dim}"
    if _fills_little(keys) or (head_dim in WIDER and keys >= KEYS):
        return ""
    if head_dim in WIDER:
        return f"expected at least {KEYS} keys, got {keys}"
    return f"expected keys in whole tiles of {KEYS}, or more than {ANY_NUMBER:,}, got {keys:,}"


def _fills_little(keys: int) -> bool:
    """Whether what fills the last tile has next to no weight."""
    return keys > 0 and filler_share_bound(-keys % KEYS, keys) <= MOST_FILLED


def smoothed(k: torch.Tensor) -> torch.Tensor:
    """Keys (B, S, H, D) without their mean over the tokens."""
    return k - k.mean(1, keepdim=True)


def scaled(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (B, S, H, D) over powers of two (B, 1, H, D), and these: the largest of each channel is in [256, 512).

    No number is read from the device. A channel of zeros, and one that is not finite, are left as they are.
    """
    largest = torch.linalg.vector_norm(v, math.inf, dim=1, keepdim=True).float()
    mantissa, _ = torch.frexp(largest)
    plain = (mantissa > 0) & largest.isfinite()
    unit = torch.where(plain, largest / LARGEST / mantissa, 1.0)
    unit = unit.clamp(min=torch.finfo(v.dtype).tiny).to(v.dtype)
    return v / unit, unit


def filled(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smoothed keys and values (B, S, H, D) in whole tiles: the mean key, which is 0, and the mean value at their ends.

    With softmax mass p on the fillers the output is off by p times its distance to the mean value.
    """
    missing = -k.shape[1] % KEYS
    if not missing:
        return k, v
    mean = v.mean(1, keepdim=True).expand(-1, missing, -1, -1)
    return F.pad(k, (0, 0, 0, 0, 0, missing)), torch.cat([v, mean], 1)


def without_tail(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention over smoothed keys of any number, for heads that `WIDER` has: (B, S, H, D) in and out.

    With fillers of mass p, whose values are 0, the kernel's output is 1 - p times the right one, and p is one of its
    channels. It is below 1/2 for 64 keys and more, since a filler weighs no more than the average key.
    """
    keys, size = k.shape[1:4:2]
    wide, missing = WIDER[size], -keys % KEYS
    # The kernel divides scores by the root of the head size it is given.
    query = F.pad(q * math.sqrt(wide / size), (0, wide - size))
    widened = F.pad(v, (0, wide - size, 0, 0, 0, missing))
    widened[:, keys:, :, size] = 1
    out = _sage(query, F.pad(k, (0, wide - size, 0, 0, 0, missing)), widened)
    mass = out[..., size : size + 1].float()
    return (out[..., :size] / (1 - mass)).to(q.dtype)


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
