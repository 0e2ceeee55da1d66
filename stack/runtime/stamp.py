"""Under which conditions a cached tensor was made. Other conditions: it is dropped and counted, never reused."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

import torch

from ..models.schedule import SigmaSchedule


@dataclass(frozen=True)
class Conditions:
    """What a denoiser call's features depend on beside their request and tokens; `ConditionsReader` reads it.

    Attributes:
        passes: how often passes were put on or taken off: quantization, adapters, sparse attention.
        weights: how often parameters and buffers have been seen to change.
        adapters: scales and switches of peft's adapters, which are no tensors.
        attention: who computes attention, with its settings.
        precision: what autocast computes in; "" where it is off.
        conditioning: every argument of the call but the latent and its time, by name, see
            `stack.runtime.conditions.Conditioning`.
        caller: thread and asyncio task. Two loops over one model may differ in nothing else.
    """

    passes: int = 0
    weights: int = 0
    adapters: Hashable = ()
    attention: Hashable = ()
    precision: str = ""
    conditioning: tuple[tuple[str, Hashable], ...] = ()
    caller: Hashable = ()


@dataclass(frozen=True)
class Stamp:
    """Everything a cached feature depends on.

    Attributes:
        request, branch, joined: whose trajectory it lies on, and since which step, see `StepContext`.
        conditions: everything that is no property of the tokens or of the schedule.
        schedule: noise levels and shift: the same step of as many steps may be at another one.
        shape, dtype, device: of the latent tokens it was made from.
    """

    request: int
    branch: str
    conditions: Conditions
    schedule: SigmaSchedule
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    joined: int = 0

    def differing(self, other: Stamp) -> list[str]:
        """What is not as in another stamp, by name."""
        mine, theirs = ({**vars(s), **vars(s.conditions)} for s in (self, other))
        names = [f.name for f in (*fields(Stamp), *fields(Conditions)) if f.name != "conditions"]
        found = [name for name in names if mine[name] != theirs[name]]
        asked, before = dict(self.conditions.conditioning), dict(other.conditions.conditioning)
        if arguments := [name for name in {**before, **asked} if asked.get(name) != before.get(name)]:
            found[found.index("conditioning")] = f"conditioning ({', '.join(arguments)})"
        return found
