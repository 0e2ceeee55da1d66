"""Whether weights and prompts are still the ones a cache was filled under."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

WORD = 8  # bytes
LANES = 64  # words next to each other are weighted differently: exchanging two of them shows


def leaves(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors inside a tensor: those of torchao's and quanto's weights, or the tensor itself."""
    if not isinstance(tensor, torch.Tensor):
        return
    if type(tensor) in (torch.Tensor, nn.Parameter) or "__tensor_flatten__" not in dir(type(tensor)):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]  # subclasses have it
        yield from leaves(getattr(tensor, name))


class Content:
    """The content of some tensors: a 64-bit sum over their bits and places.

    The sum is made on the tensors' device when this object is made. It is read back only when two of these are
    compared, so that a request whose tensors stay the same never waits for an accelerator.

    Not made against an adversary: changes of independent bits stay unseen with a chance of about 2^-60.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]):
        self._sums: dict[torch.device, list[torch.Tensor]] = {}
        self._order: list[torch.device] = []
        self._value: int | None = None
        for leaf in (leaf for tensor in tensors for leaf in leaves(tensor)):
            self._order.append(leaf.device)
            self._sums.setdefault(leaf.device, []).append(_bits(leaf.detach()))

    @property
    def value(self) -> int:
        """The sum. Reads one tensor back from each device, the first time that it is asked for."""
        if self._value is None:
            read = {device: iter(torch.stack(sums).tolist()) for device, sums in self._sums.items()}
            total = 0
            for number, device in enumerate(self._order):
                total = (total * 1_000_003 + number + next(read[device])) % 2**64
            self._value = total
            self._sums.clear()
        return self._value

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Content) and self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Weighted sum of a plain tensor's words, () int64 on its device."""
    if tensor.numel() == 0 or tensor.is_meta:  # the content of an offloaded tensor is elsewhere
        return torch.zeros((), dtype=torch.int64, device="cpu" if tensor.is_meta else tensor.device)
    flat = tensor.contiguous().flatten()
    if flat.stride(0) != 1:  # one number, expanded
        flat = flat.clone(memory_format=torch.contiguous_format)
    flat = flat.view(torch.uint8)
    if flat.storage_offset() % WORD:  # part of a tensor, at a place that no word begins at
        flat = flat.clone()
    whole = flat.numel() // (WORD * LANES) * WORD * LANES
    # Odd weights: no change of a single lane cancels, whatever its size (arithmetic is modulo 2^64).
    lanes = torch.arange(LANES, device=tensor.device, dtype=torch.int64) * 0x9E3779B1 * 2 + 1
    words = flat[:whole].view(torch.int64).view(-1, LANES)
    rows = (torch.arange(len(words), device=tensor.device, dtype=torch.int64) * 0x85EBCA6B) * 2 + 1
    body = ((words * lanes).sum(1) * rows).sum()
    if whole < len(flat):
        body = body * 31 + (flat[whole:].to(torch.int64) * (lanes.repeat(WORD)[: len(flat) - whole])).sum()
    return body


def version_of(tensor: torch.Tensor) -> int:
    """How often torch has seen a tensor written to. Inference tensors count nothing, and only inference writes them."""
    return 0 if tensor.is_inference() else tensor._version
