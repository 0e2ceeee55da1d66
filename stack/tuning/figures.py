"""What is measured of one stack: its pictures against those of the model without one, time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..measure.metrics import psnr
from ..measure.perceptual import Perceptual

FLIPPED_DB = 25.0  # below it, a picture shows something else


@dataclass(frozen=True)
class Compared:
    """One picture of a stack beside the same picture without one.

    Attributes:
        psnr: in dB; None of latents.
        lpips: perceptual distance; None where it is not asked for.
        error: relative error of the latents, |a - b| / |b|; None of pictures.
        seconds: of this picture.
        peak_bytes: most memory while it was made; 0 where unknown.
    """

    psnr: float | None
    lpips: float | None
    error: float | None
    seconds: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Figures:
    """Medians over samples, and what they are of.

    Attributes:
        speedup: against the model without a stack, compiled where that is faster.
        flipped: share of pictures below 25 dB.
        gigabytes: the highest peak, in 10^9 bytes.
        samples: how many pictures.
    """

    psnr: float | None
    lpips: float | None
    error: float | None
    seconds: float
    speedup: float
    flipped: float
    gigabytes: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[Compared], base_seconds: float) -> Figures:
        """Figures of at least one sample."""
        seconds = statistics.median(s.seconds for s in samples)
        return cls(
            psnr=_median([s.psnr for s in samples]),
            lpips=_median([s.lpips for s in samples]),
            error=_median([s.error for s in samples]),
            seconds=seconds,
            speedup=base_seconds / seconds,
            flipped=sum(s.psnr is not None and s.psnr < FLIPPED_DB for s in samples) / len(samples),
            gigabytes=max(s.peak_bytes for s in samples) / 1e9,
            samples=len(samples),
        )


def _median(values: Sequence[float | None]) -> float | None:
    """The median, or None where a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def sample(
    made: torch.Tensor,
    target: torch.Tensor,
    seconds: float,
    peak: int | None,
    distance: Perceptual | None,
    latent: bool,
) -> Compared:
    """Compare a picture (3, H, W) or video (F, 3, H, W) in [0, 1], or latents of any shape, with the target."""
    if latent:
        off, size = (made - target).norm().item(), target.norm().item()
        return Compared(None, None, off / size if size else None, seconds, peak or 0)
    far = None
    if distance is not None:
        frames = [x.flatten(0, -4) if x.ndim > 3 else x[None] for x in (made, target)]
        far = distance(*frames).mean().item()
    return Compared(psnr(made[None], target[None]), far, None, seconds, peak or 0)
