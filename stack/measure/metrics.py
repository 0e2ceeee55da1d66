"""Quality of pictures against the unaccelerated run. Pictures are float (B, 3, H, W) in [0, 1] throughout.

Videos (B, F, 3, H, W) stand where pictures do: a video's frames count as so many pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

IDENTICAL_DB = 90.0  # beyond this the difference is rounding: what compilation alone does in fp32
SMALLEST_MS_SSIM = 176  # pixels
CAP_DB = 99.0  # what identical pictures get instead of infinity; also the ceiling of everything else


def psnr(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) for a peak of 1.0; torchmetrics', in float64.

    The squared error is pooled over all pictures before the logarithm, so that one broken picture among many good ones
    shows; the mean of per-picture PSNRs would hide it. Capped at 99 (identical pictures); NaN counts as no likeness, 0.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    ratio = float(peak_signal_noise_ratio(pictures.double(), reference.double(), data_range=1.0))
    return min(CAP_DB, ratio) if ratio > -math.inf else 0.0  # not so for NaN either


def mean_psnr(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    """The mean of the pictures' own PSNR in dB: what a choice between caches goes by.

    One picture whose layout flips costs it some dB; of the pooled PSNR such a picture is all that is left.
    """
    return sum(map(psnr, pictures, reference)) / len(pictures)


def ssim(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over the pictures; torchmetrics', Gaussian window of 11 x 11."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    some, others = _frames(pictures.nan_to_num().float()), _frames(reference.nan_to_num().float())
    found: Any = structural_similarity_index_measure(some, others, data_range=1.0)
    return float(found)


def ms_ssim(pictures: torch.Tensor, reference: torch.Tensor) -> float | None:
    """Structural similarity at five scales (Wang et al. 2003), mean over the pictures; torchmetrics'.

    None for pictures whose shorter side is below 176 pixels: the last of five halvings leaves less than its window.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(pictures.shape[-2:]) < SMALLEST_MS_SSIM:
        return None
    some, others = _frames(pictures.nan_to_num().float()), _frames(reference.nan_to_num().float())
    return float(multiscale_structural_similarity_index_measure(some, others, data_range=1.0))


def _frames(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) as it is; (B, F, 3, H, W) as (B * F, 3, H, W)."""
    return pictures.flatten(0, -4)


def picture_warnings(pictures: torch.Tensor, reference: torch.Tensor | None, should_differ: bool) -> list[str]:
    """What no good row shows: broken numbers, empty pictures, or a pass that changed nothing.

    Args:
        reference: the base pictures; None for the base itself.
        should_differ: whether the row's passes change the arithmetic.
    """
    found = []
    broken = int((~torch.isfinite(pictures)).flatten(1).any(1).sum())
    if broken:
        found.append(f"{broken} of {len(pictures)} pictures hold NaN or infinity")
    sound = pictures.nan_to_num().flatten(1)
    flat = int(((sound.amax(1) - sound.amin(1)) < 1 / 255).sum())
    if flat:
        found.append(f"{flat} of {len(pictures)} pictures are one single colour")
    if reference is not None and should_differ and psnr(pictures, reference) >= IDENTICAL_DB:
        found.append("identical to base: its passes changed nothing")
    return found


def efficiency(speedup_all: float | None, alone: Sequence[float | None]) -> float | None:
    """Measured speedup of the full stack / product of the speedups of its passes alone.

    1: the passes multiply as if independent. Below 1: they compete for the same work. None where a figure is missing.
    """
    if speedup_all is None or not alone or any(not value for value in alone):
        return None
    return speedup_all / math.prod(value for value in alone if value)


def interaction_db(psnr_all: float | None, alone: Sequence[float | None]) -> float | None:
    """PSNR of the worst pass alone minus PSNR of the full stack, both against the base pictures, in dB.

    Positive: together they lose more than the worst of them loses alone. Independent errors of n equal passes would
    give 10 log10(n), 3 dB for two. None where a figure is missing.
    """
    known = [value for value in alone if value is not None]
    if psnr_all is None or not known or len(known) < len(alone):
        return None
    return min(known) - psnr_all
