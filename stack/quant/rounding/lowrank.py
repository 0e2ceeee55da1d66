"""A low-rank branch in 16 bits beside the rounded weight: W is about L R + Q(W - L R) (Li et al. 2024, SVDQuant,
arXiv 2411.05007), its directions chosen by what the inputs excite."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

ITERATIONS = 3


class LowRankBranch(NamedTuple):
    """L (N, r) and R (r, K) of a product L R, float32 with values that bfloat16 holds."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def product(self) -> torch.Tensor:
        """(N, K)."""
        return self.left @ self.right


def leading(matrix: torch.Tensor, rank: int, power: torch.Tensor) -> LowRankBranch:
    """The best rank-`rank` approximation of a matrix (N, K) where an error of channel k costs `power[k]`.

    The Frobenius error of the scaled matrix is `bounds.truncation_error` of its singular values (Eckart-Young 1936),
    plus what storing both factors in 16 bits adds.

    Args:
        power: (K,) mean square of each input channel; ones for the plain Frobenius norm.
    """
    scale = power.float().clamp_min(1e-12 * float(power.max().clamp_min(1e-30))).sqrt()
    u, s, vh = torch.linalg.svd(matrix.float() * scale, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vh[:rank] / scale
    return LowRankBranch(left.to(torch.bfloat16).float(), right.to(torch.bfloat16).float())


def with_branch(
    weight: torch.Tensor,
    rank: int,
    power: torch.Tensor,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    iterations: int = ITERATIONS,
) -> LowRankBranch:
    """The branch for a weight (N, K), found by turns: round what the branch leaves, then fit what rounding left.

    The first branch is that of the weight itself, as in SVDQuant; what is kept is the branch of the turn with the
    smallest error, so more turns are never worse.

    Args:
        rounded: a weight (N, K) to its rounded value.
    """
    branch = leading(weight, rank, power)
    best, least = branch, torch.inf
    for _ in range(max(1, iterations)):
        left = rounded(weight - branch.product)
        error = float(((weight - branch.product - left).square() * power).sum())
        if error < least:
            best, least = branch, error
        branch = leading(weight - left, rank, power)
    return best
