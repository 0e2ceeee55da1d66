"""What a run was asked for, as every part of it reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        tiny: small models, few steps: a dry run, whose figures mean nothing.
        compiled: whether blocks are compiled where a row asks for it. A dry run leaves it out, it takes minutes.
        references: file of the latents that a CPU computed.
        brief: one smoke row of each kind instead of all.
    """

    device: torch.device
    tiny: bool
    compiled: bool
    references: Path
    brief: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def either(self, full: T, tiny: T) -> T:
        """A size of the real run, or that of a dry one."""
        return tiny if self.tiny else full
