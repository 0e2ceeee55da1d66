"""Whether a model's weights are still the ones a cache was filled under: by content, not by names or addresses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

WORD = 8  # bytes
LANES = 64  # words next to each other are weighted differently: exchanging two of them shows


def fingerprint(tensors: Iterable[torch.Tensor]) -> int:
    """A 64-bit sum over the bits of all tensors and their places. One pass over the memory, one number read back.

    Not made against an adversary: changes of independent bits stay unseen with a chance of about 2^-60.
    """
    total = 0
    for number, tensor in enumerate(tensors):
        total = (total * 1_000_003 + number + _bits(tensor.detach())) % 2**64
    return total


def _bits(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0 or tensor.is_meta:  # offloaded weights come and go; their content is elsewhere
        return 0
    flat = tensor.contiguous().flatten().view(torch.uint8)
    whole = flat.numel() // (WORD * LANES) * WORD * LANES
    # Odd weights: no change of a single lane cancels, whatever its size (arithmetic is modulo 2^64).
    lanes = torch.arange(LANES, device=tensor.device, dtype=torch.int64) * 0x9E3779B1 * 2 + 1
    words = flat[:whole].view(torch.int64).view(-1, LANES)
    rows = (torch.arange(len(words), device=tensor.device, dtype=torch.int64) * 0x85EBCA6B) * 2 + 1
    body = ((words * lanes).sum(1) * rows).sum()
    tail = (flat[whole:].to(torch.int64) * (lanes.repeat(WORD)[: len(flat) - whole])).sum()
    return int(body * 31 + tail) % 2**64


class WeightsWatch:
    """Notices changed weights, however it happens: `load_state_dict`, an adapter, an optimizer, an edit in place.

    Once per request the content is read. On the steps between, versions and addresses are compared, which costs
    microseconds; an edit through `.data`, which torch does not count, is seen when the next request begins.
    """

    def __init__(self, denoiser: nn.Module):
        self._denoiser = denoiser
        self._request = -1
        self._tensors: list[torch.Tensor] = []
        self._marks: list[tuple[int, int]] = []
        self._content = 0

    def __call__(self, request: int) -> int:
        """Fingerprint of parameters and buffers, at a step of this request."""
        if request != self._request:
            self._request = request
            self._tensors = [*self._denoiser.parameters(), *self._denoiser.buffers()]
            self._read()
        elif self._marks != self._now():
            self._read()
        return self._content

    def _read(self) -> None:
        self._content, self._marks = fingerprint(self._tensors), self._now()

    def _now(self) -> list[tuple[int, int]]:
        # Inference tensors count no versions, and cannot be written to outside inference mode.
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors]
