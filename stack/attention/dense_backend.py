"""Other exact kernels as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from ..core.facts import Machine
from .dense_kernels import DenseKernel, chosen
from .layers import NOTHING, AttentionCall
from .sparsity import MASKED
from .tally import Tally

SLOWER = "no kernel is known to be faster than torch's for such calls"


class Dense:
    """Computes calls without a mask by the kernel that is asked for, or the fastest.

    Args:
        name: of a kernel, or "auto".
    """

    def __init__(self, name: str, machine: Machine, tally: Tally):
        self.name, self.machine, self.tally = name, machine, tally
        self._kernel: DenseKernel | None = None  # of the call that was asked for last

    def unfit(self, call: AttentionCall) -> str:
        """Why torch computes this call, or ""."""
        if reason := call.unusual or call.recorded:
            return reason
        if call.hides != NOTHING:
            return MASKED
        q = call.sdpa.q
        self._kernel = chosen(self.name, self.machine, q.dtype, call.sdpa.tokens, q.shape[3])
        return "" if self._kernel else SLOWER

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention by the kernel that `unfit` chose for this call. (B, S, H, D) in and out."""
        assert self._kernel is not None, "asked without `unfit`"
        return self._kernel.run(q, k, v)

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call."""
        self.tally.note(reason)
