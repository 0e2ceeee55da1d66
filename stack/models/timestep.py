"""The timestep argument of a denoiser call."""

from __future__ import annotations

import torch

from ..core.readback import reads_are_free


def precision_of(timestep: torch.Tensor) -> float:
    """Relative precision of its number format; whole numbers are exact."""
    return torch.finfo(timestep.dtype).eps if timestep.dtype.is_floating_point else 0.0


def same_for_all(timestep: torch.Tensor) -> bool:
    """Whether all samples are at one timestep, as far as that is known without waiting for an accelerator."""
    if timestep.numel() == 1 or not any(timestep.stride()) or not reads_are_free(timestep.device):
        return True
    return bool((timestep == timestep.flatten()[0]).all())


def place_in(timestep: torch.Tensor, timesteps: torch.Tensor) -> int | None:
    """Which of a scheduler's timesteps an argument is a view of: known without a read. None where it is none."""
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset())
