"""The latent that a denoiser is given and what it returns, as tokens and as estimates."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..models.estimates import Estimate
from ..runtime.call import DenoiserCall


def tokens_of(latent: torch.Tensor) -> torch.Tensor:
    """(B, N, C) as it is; (B, C, ...) as tokens (B, N, C)."""
    return latent if latent.ndim == 3 else latent.flatten(2).mT


def like(tokens: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The inverse of `tokens_of`, for tokens that may have other channels than the latent, see `noisy_part`."""
    return tokens if latent.ndim == 3 else tokens.mT.unflatten(2, latent.shape[2:])


def noisy_part(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The noisy latent in what a denoiser is given: as many channels as it returns, (B, N, C) or (B, C, ...).

    Pictures that it is conditioned on may follow in further channels (FLUX Control and Fill): diffusers' pipelines put
    the noisy latent first. Where it returns a variance, too, (DiT, PixArt) that comes last and has no latent to be
    added to: zeros.
    """
    axis = 2 if x.ndim == 3 else 1
    missing = out.shape[axis] - x.shape[axis]
    if missing > 0:
        return torch.cat([x, torch.zeros_like(x.narrow(axis, 0, missing))], axis)
    return x.narrow(axis, 0, out.shape[axis]) if missing else x


def turned(estimate: Estimate, call: DenoiserCall) -> Estimate:
    """The estimate for a call whose denoiser returns x0 - noise: its pipeline turns the sign before the sampler."""
    return replace(estimate, d=-estimate.d) if call.backwards else estimate


def x0_of(estimate: Estimate, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The estimate (B, N, C) of the clean sample that an output m at x amounts to: x0 = c x + d m."""
    return tokens_of(estimate.c * noisy_part(x, out) + estimate.d * out)


def output_of(estimate: Estimate, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """The output m, in the latent's layout, that amounts to this estimate (B, N, C): the inverse of `x0_of`."""
    clean = like(x0, x)
    return (clean - estimate.c * noisy_part(x, clean)) / estimate.d
