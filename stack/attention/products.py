"""Exact attention as two matrix products, for CPUs on which these are far faster than torch's kernel.

Torch's kernel multiplies bf16 at the speed of fp32 unless the processor has AMX. On a processor with AVX-512 BF16
alone matrix products are five times faster than that, so that it pays to write the scores of a few queries down:
scores = q k^T, weights = exp(scores - shift), output = weights v / sum(weights), each a call of torch.

Scores are written down in bf16, which is exact to 1 part in 512. The large ones decide. So a number close to the
largest score of a query is subtracted from its scores before they are rounded, which leaves softmax as it was. `shifts`
estimates it from mean keys; where it is too far off (`LEAST`, `MOST`) the largest score itself is taken. What rounding
costs an output at most: `moved_scores_bound` in benchmarks/boundbench/documented.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..core.facts import Machine
from .maps import in_parts

QUERIES = 256  # whose scores are written down together: 2 MB at 4,096 keys; fewer are slower, more are no faster
RUN = 64  # keys that have one mean
ABOVE = 2.0  # how much larger the largest score is than that of the best mean key, about
# Sums of weights. A row beyond them has scores that lie that far from their shift: their rounding would show.
LEAST, MOST = math.exp(-8.0), math.exp(16.0)


def pays(machine: Machine, dtype: torch.dtype) -> bool:
    """Whether this is faster than torch's kernel. Measured on Zen 4: 2.6 and 3.2 times at heads of 64 and 128."""
    return machine.device == "cpu" and machine.fast_bf16 and not machine.amx and dtype == torch.bfloat16


Place = tuple[int, int, slice]  # sample, head and positions of some queries
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Place], tuple[torch.Tensor, torch.Tensor]]
"""Attention of queries (N, D) over keys and values (S, D): outputs (N, D), and the log-sum-exp (N,) of the scores."""


def products_of(q: torch.Tensor, k: torch.Tensor, most: int = QUERIES) -> Attend:
    """Attention by products for some of these queries (B, S, H, D) at a time, over all of their keys or fewer.

    Args:
        most: queries at a time.
    """
    shift = shifts(q, k)
    # Used again for the next queries: memory that comes from the system costs a fault a page.
    room = q.new_empty(min(most, q.shape[1]) * k.shape[1])

    def attend(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sample, head, positions = place
        there, size = shift[sample, head, positions], len(query) * len(keys)
        weights, scale = room[:size].view(len(query), len(keys)), 1 / math.sqrt(query.shape[-1])
        total = _weigh(query, keys, there, scale, weights)
        if not _near(total):
            # Such as where one key, a sink, lies far above its run: once more, with the largest score itself.
            there = torch.mm(query, keys.T, out=weights).amax(-1, keepdim=True).mul_(scale)
            total = _weigh(query, keys, there, scale, weights)
            if not _near(total):
                return exactly(query, keys, values)
        return (weights @ values) / total, (there + total.log())[:, 0]

    return attend


def _weigh(
    query: torch.Tensor, keys: torch.Tensor, shift: torch.Tensor, scale: float, weights: torch.Tensor
) -> torch.Tensor:
    """Fills in the weights (N, S) of some queries; returns their sums (N, 1) in fp32."""
    torch.addmm(shift.neg(), query, keys.T, alpha=scale, out=weights)
    torch.exp(weights, out=weights)
    return weights.sum(-1, keepdim=True, dtype=torch.float32)


def _near(total: torch.Tensor) -> bool:
    """Whether all shifts were close enough to the largest scores; not where a sum is not a number."""
    least, most = total.aminmax()
    return float(least) > LEAST and float(most) < MOST


def shifts(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """About the largest score of each query over all keys: (B, H, S, 1) for (B, S, H, D) tensors, in their dtype."""
    keys, run = k.transpose(1, 2), min(RUN, k.shape[1])
    means = keys[:, :, : k.shape[1] // run * run].unflatten(2, (-1, run)).mean(3)
    largest = q.new_empty(q.shape[0], q.shape[2], q.shape[1], 1)
    parts = in_parts(q.shape[1] * means.shape[2], q.device)
    for sample in range(len(q)):
        for head in range(q.shape[2]):
            queries, there = q[sample, :, head].chunk(parts), largest[sample, head].chunk(parts)
            for some, room in zip(queries, there, strict=True):
                torch.amax(some @ means[sample, head].T, -1, keepdim=True, out=room)
    return largest.float().div_(math.sqrt(q.shape[-1])).add_(ABOVE).to(q.dtype)


def exactly(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of queries (N, D) and the log-sum-exp of their scores, by torch's kernel."""
    q, k, v = (x[None, None] for x in (query, keys, values))
    if query.device.type == "cpu":
        # What is behind scaled_dot_product_attention, by its own name: the public one keeps the sums to itself.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out[0, 0], lse[0, 0]
    scores = (query @ keys.T).float() / math.sqrt(query.shape[-1])
    return F.scaled_dot_product_attention(q, k, v)[0, 0], scores.logsumexp(-1)


def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors, without a mask; the same shape and dtype out."""
    out, attend = torch.empty_like(q), products_of(q, k)
    for sample in range(len(q)):
        for head in range(q.shape[2]):
            keys, values = (x[sample, :, head].contiguous() for x in (k, v))
            for first in range(0, q.shape[1], QUERIES):
                some = slice(first, first + QUERIES)
                out[sample, some, head], _ = attend(q[sample, some, head], keys, values, (sample, head, some))
    return out
