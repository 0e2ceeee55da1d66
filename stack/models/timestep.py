"""The timestep argument of a denoiser call."""

from __future__ import annotations

import torch


def precision_of(timestep: torch.Tensor) -> float:
    """Relative precision of its number format; whole numbers are exact."""
    return torch.finfo(timestep.dtype).eps if timestep.dtype.is_floating_point else 0.0


def same_for_all(timestep: torch.Tensor) -> bool:
    """Whether every entry of a timestep tensor (), (1,) or (B, ...) is the same.

    A single element or an expanded one (a view of stride 0) needs no look at the values. Others are compared, which
    waits for an accelerator if they lie on one. A NaN differs from every other entry.
    """
    spread = [stride for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if size > 1]
    if not any(spread):
        return True
    return bool((timestep == timestep.flatten()[0]).all())


def of_noisy_tokens(timestep: torch.Tensor) -> torch.Tensor | None:
    """The time of all noisy tokens of timesteps (B, N) where all others are clean, at time 0; None where they are not.

    A video that continues a picture has its first frame clean.
    """
    if timestep.ndim != 2 or timestep.shape[1] < 2:
        return None
    time = timestep.max()
    noisy = timestep == time
    alike = bool(((timestep == 0) | noisy).all() and noisy.any(1).all())
    return time if alike else None


def place_in(timestep: torch.Tensor, timesteps: torch.Tensor) -> int | None:
    """Which of a scheduler's timesteps an argument is a view of: known without a read. None where it is none."""
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset())
