"""Whether all samples of a denoiser call are at the same time."""

from __future__ import annotations

import torch


def same_for_all(timestep: torch.Tensor) -> bool:
    """Whether every entry of a timestep tensor (), (1,) or (B, ...) is the same.

    One element, and an expanded one (a view of stride 0), are told without a look at their values. Others are compared,
    which waits for an accelerator if they lie on one. A NaN is as no other entry.
    """
    spread = [stride for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if size > 1]
    if not any(spread):
        return True
    return bool((timestep == timestep.flatten()[0]).all())
