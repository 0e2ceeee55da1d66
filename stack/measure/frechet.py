"""Frechet distances between sets of pictures or videos, on the features of any network."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core.errors import StackError

Features = Callable[[torch.Tensor], torch.Tensor]  # pictures (B, 3, H, W) in [0, 1] to features (B, D)


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Squared Frechet distance of two Gaussians fitted to feature sets (Dowson & Landau 1982; Heusel et al. 2017, FID).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with means m and covariances C, in float64. With C = R^T R the last
    root's trace is the sum of the singular values of R1 R2^T, which is no larger than the smaller of N and D.

    Small samples make it too large, by an amount that falls as 1/N and depends on the model (Chong & Forsyth 2020,
    arXiv:1911.07023): two sets drawn from one distribution are not at 0. Compare only figures of equal N; below N = D
    the covariances are singular, and a figure says little by itself.

    Args:
        features: (N, D).
        reference: (M, D).

    Returns:
        A number >= 0, in squared units of the features.

    Raises:
        StackError: fewer than two samples, different D, or numbers that are not finite.
    """
    for name, samples in (("features", features), ("reference", reference)):
        if samples.ndim != 2 or len(samples) < 2:
            raise StackError(f"{name} must be (N, D) with N of at least 2, got shape {tuple(samples.shape)}")
        if not samples.isfinite().all():
            raise StackError(f"{name} hold NaN or infinity: expected finite numbers; look at the pictures first")
    if features.shape[1] != reference.shape[1]:
        raise StackError(f"expected features of one length, got {features.shape[1]} and {reference.shape[1]}")
    mean, root = _moments(features)
    mean_r, root_r = _moments(reference)
    cross = torch.linalg.svdvals(root @ root_r.T).sum()
    distance = (mean - mean_r).square().sum() + root.square().sum() + root_r.square().sum() - 2 * cross
    return max(0.0, distance.item())


def fid(pictures: torch.Tensor, reference: torch.Tensor, features: Features) -> float:
    """Frechet distance of two sets of pictures (N, 3, H, W) in [0, 1]; see `frechet_distance` for its traps.

    It is not comparable with published FID, whose features are InceptionV3's.
    """
    return frechet_distance(features(pictures), features(reference))


def t_fid(videos: torch.Tensor, reference: torch.Tensor, features: Features) -> float:
    """Frechet distance of the motion in two sets of videos (N, F, 3, H, W) in [0, 1].

    The samples are the differences of consecutive frames' features, N (F - 1) in all: flicker and frozen motion move
    it, the look of the frames alone does not.

    Raises:
        StackError: videos of fewer than two frames, and see `frechet_distance`.
    """
    return frechet_distance(_motion(videos, features), _motion(reference, features))


def _motion(videos: torch.Tensor, features: Features) -> torch.Tensor:
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise StackError(f"expected videos (N, F, C, H, W) of at least two frames, got shape {tuple(videos.shape)}")
    frames = features(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
    return frames.diff(dim=1).flatten(0, 1)


def _moments(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and R (min(N, D), D) with R^T R the unbiased covariance of samples (N, D), in float64."""
    samples = samples.double()
    mean = samples.mean(0)
    root = torch.linalg.qr(samples - mean, mode="r").R
    return mean, root / (len(samples) - 1) ** 0.5
