"""The map that a policy asks for, of one call, and what was measured while it was made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.facts import machine_of
from .cost import rate_of
from .maps import Grid, block_map, dropped_mass, mass_map, with_dense_heads
from .output_error import error_map
from .producers import MEASURED, PRODUCERS, STATIC, few_heads, losses, sample_of, sampled
from .sparsity import SparsityPolicy


@dataclass(frozen=True)
class PolicyMap:
    """A map and its price.

    Attributes:
        kept: (B, H, rows, blocks) boolean.
        dropped: mean share of the softmax mass that is left out; None where it was not measured.
        error: mean relative error of the sampled outputs; None where it was not measured.
    """

    kept: torch.Tensor
    dropped: torch.Tensor | None = None
    error: torch.Tensor | None = None


def policy_map(
    policy: SparsityPolicy,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None,
    places: torch.Tensor | None = None,
) -> PolicyMap:
    """The map for queries, keys and values (B, S, H, D), and the places of their tokens (B, S, H, axes), that lie in
    the order in which blocks are cut."""
    if policy.producer != MEASURED:
        shares = PRODUCERS[policy.producer](q, k, grid, seen, places)
        order_by = shares if policy.producer in STATIC else losses(shares, v, grid)
        return PolicyMap(block_map(order_by, grid, policy.keep))
    parts = [_of_heads(policy, *some, grid, seen) for some in few_heads(q, k, v, grid)]
    dropped = torch.cat([part.dropped for part in parts if part.dropped is not None], 1).mean()
    errors = [part.error for part in parts if part.error is not None]
    return PolicyMap(
        torch.cat([part.kept for part in parts], 1), dropped, torch.cat(errors, 1).mean() if errors else None
    )


def _of_heads(
    policy: SparsityPolicy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, seen: torch.Tensor | None
) -> PolicyMap:
    """The map of some heads; what it drops and its error as they are in each row (B, H, rows)."""
    if not policy.budget:
        shares = sampled(q, k, grid, seen)
        kept = block_map(losses(shares, v, grid), grid, policy.keep)
        return PolicyMap(kept, dropped_mass(shares, kept))
    sample, error = sample_of(q, k, grid, seen), None
    shares = sample.shares(grid)
    if policy.max_error is not None:
        kept, error = error_map(q, k, v, sample, losses(shares, v, grid), grid, policy.max_error)
    else:
        kept = mass_map(shares, grid, policy.max_mass or 0.0)
    kept = with_dense_heads(kept, grid, policy.densest(rate_of(machine_of(q.device), q.dtype)))
    return PolicyMap(kept, dropped_mass(shares, kept), error)
