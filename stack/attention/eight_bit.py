"""SageAttention as one of the back ends of an attention layer."""

from __future__ import annotations

import torch

from .layers import NOTHING, AttentionCall
from .sage import sage_attention, unfit
from .sparsity import MASKED
from .tally import Tally


class EightBit:
    """Rounds queries and keys to int8 in every call that the kernel can take."""

    def __init__(self, tally: Tally):
        self.tally = tally

    def unfit(self, call: AttentionCall) -> str:
        """Why the kernel does not compute this call, or ""."""
        if reason := call.unusual or call.recorded:
            return reason
        if call.hides != NOTHING:
            return MASKED
        q, k, v = (x.transpose(1, 2) for x in (call.sdpa.q, call.sdpa.k, call.sdpa.v))
        # As if every head of queries had its own keys, which `SdpaCall.plain` gives it.
        return unfit(q, *(x[:, :, :1].expand_as(q) for x in (k, v)))

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """Attention with 8-bit scores. (B, S, H, D) in and out."""
        return sage_attention(q, k, v)

    def note(self, reason: str, call: AttentionCall | None) -> None:
        """Counts a call."""
        self.tally.note(reason)
