"""Which tokens move: FastCache's split into motion and static tokens (arXiv 2505.20353). Pure."""

from __future__ import annotations

import torch


def saliency(x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """S(i) = |x_i - before_i|^2 of tokens (N, D), in float32: (N,)."""
    return (x.float() - before.float()).square().sum(-1)


def moving_tokens(salience: torch.Tensor, threshold: float) -> torch.Tensor:
    """Ascending indices of the tokens whose saliency is at least `threshold` times the mean.

    A share of the mean is the same decision at every noise level and width. 0 takes every token.
    """
    return (salience >= threshold * salience.mean()).nonzero()[:, 0]


def relative_change(x: torch.Tensor, before: torch.Tensor) -> float:
    """delta = |x - before|_F / |before|_F, the paper's; the published code divides by the current norm."""
    base = before.float().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((x.float() - before.float()).norm() / base)
