"""Noise levels to train at, and the target of rectified flow there."""

from __future__ import annotations

import torch


def stratified_normal(count: int, device: torch.device) -> torch.Tensor:
    """Standard normal numbers (count,): each one has one of `count` equally likely parts of the line to itself."""
    shares = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return torch.special.ndtri(shares)


def shifted_sigmas(normal: torch.Tensor, shift: float) -> torch.Tensor:
    """Logit-normal sigmas (Esser et al. 2024, section 3.1), shifted like the sampling schedule."""
    unshifted = torch.sigmoid(normal)
    return shift * unshifted / (1 + (shift - 1) * unshifted)


def noised(clean: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 - sigma) clean + sigma noise, one sigma for each of the batch, and the velocity there, noise - clean."""
    noise = torch.randn_like(clean)
    return torch.lerp(clean, noise, sigmas.reshape(-1, *[1] * (clean.ndim - 1))), noise - clean
