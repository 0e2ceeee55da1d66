"""Numbers between host and device: where reading one waits, and how indices go there without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def reads_are_free(device: torch.device) -> bool:
    """Whether a number can be read from a tensor without waiting for queued work.

    Every decision that depends on it asks here, so that tests can have the accelerator's path on a CPU.
    """
    return device.type == "cpu"


def sent(parts: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """1-d tensors of one dtype in host memory, to a device: in one transfer that nobody waits for."""
    if not parts:
        return []
    lengths = [len(part) for part in parts]
    # From memory that is not pinned the copy waits.
    whole = torch.empty(sum(lengths), dtype=parts[0].dtype, pin_memory=device.type == "cuda")
    return list(torch.cat(list(parts), out=whole).to(device, non_blocking=True).split(lengths))
