"""Processes that each hold some of the tokens of one call, and numbers over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ranks:
    """The processes that share a call's tokens, as under diffusers' context parallelism.

    A decision that rests on features must come out alike on all of them: one that skips the blocks sends nothing to
    those that run them, and they wait. So every number that decides is summed over them first. Each sum is one call
    that all of them make, in the same order.

    Attributes:
        group: of torch.distributed; None for a process that has all tokens. Its sums are what it is given, bit for bit.
        size: how many they are.
    """

    group: Any = None
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether this process has all tokens."""
        return self.size == 1

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over the processes, the same on all of them; `numbers` is left as it is."""
        if self.size == 1:
            return numbers
        total = numbers.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def mean(self, means: torch.Tensor) -> torch.Tensor:
        """The mean over all tokens, from the means over those of each process, which has as many, or nearly."""
        return means if self.size == 1 else self.sum(means) / self.size

    def norms(self, own: torch.Tensor) -> torch.Tensor:
        """Norms of tensors whose tokens are on several processes, from those of their parts."""
        return own if self.size == 1 else self.sum(own.float().square()).sqrt()

    def relative(self, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """|part| / |whole|, a number () on their device."""
        of_part, of_whole = part.norm(), whole.norm()
        if self.size > 1:
            of_part, of_whole = self.norms(torch.stack([of_part, of_whole])).unbind()
        return of_part / of_whole.clamp_min(torch.finfo(whole.dtype).tiny)

    def mean_ratios(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | None]) -> list[float | None]:
        """mean|part| / mean|whole| of every (part, whole), and None for None; read back in one go."""
        means = [torch.stack([x.abs().mean() for x in pair]) for pair in pairs if pair is not None]
        over_all = self.mean(torch.stack(means)) if means else ()
        ratios = [part / whole.clamp_min(torch.finfo(whole.dtype).tiny) for part, whole in over_all]
        numbers = iter(torch.stack(ratios).tolist() if ratios else ())
        return [None if pair is None else next(numbers) for pair in pairs]


ALONE = Ranks()
