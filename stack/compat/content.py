"""Whether a model's weights are still the ones a cache was filled under: by content, not by names or addresses."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

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
    return int(body) % 2**64


def version_of(tensor: torch.Tensor) -> int:
    """How often torch has seen a tensor written to. Inference tensors count nothing, and only inference writes them."""
    return 0 if tensor.is_inference() else tensor._version


class WeightsWatch:
    """Notices changed weights, however it happens: `load_state_dict`, an adapter, an optimizer, an edit in place.

    Once per request the content is read. On the steps between, objects, versions and addresses are compared, which
    costs microseconds per module; an edit through `.data`, which torch does not count, is seen when the next request
    begins. Scales and switches of peft's adapters are numbers, no tensors: they are compared as they are.
    """

    def __init__(self, denoiser: nn.Module):
        self._denoiser = denoiser
        self._request = -1
        self._tensors: list[Mapping[str, torch.Tensor | None]] = []
        self._modules: list[Mapping[str, nn.Module | None]] = []
        self._adapters: list[Any] = []
        self._marks: list[int] = []
        self._held: list[nn.Module | torch.Tensor | None] = []
        self._content = 0

    def __call__(self, request: int) -> int:
        """Fingerprint of parameters and buffers, at a step of this request."""
        if request != self._request or self._marks != self._now():
            self._request = request
            self._read()
        return self._content

    @property
    def adapters(self) -> Hashable:
        """Scales and switches of peft's adapters, layer by layer, as they are now."""
        return tuple(_switches(layer) for layer in self._adapters)

    def _read(self) -> None:
        modules = list(self._denoiser.modules())
        self._tensors = [m._parameters for m in modules if m._parameters] + [m._buffers for m in modules if m._buffers]
        self._modules = [m._modules for m in modules if m._modules]
        # Its layers exist only where it has been imported, which takes seconds.
        peft = sys.modules.get("peft.tuners.tuners_utils")
        self._adapters = [] if peft is None else [m for m in modules if isinstance(m, peft.BaseTunerLayer)]
        self._content = fingerprint([*self._denoiser.parameters(), *self._denoiser.buffers()])
        self._marks = self._now()

    def _now(self) -> list[int]:
        """Every module, and every tensor with its address and version."""
        modules = [each for held in self._modules for each in held.values()]
        tensors = [tensor for held in self._tensors for tensor in held.values() if tensor is not None]
        # Held until the next call, so that nothing new takes the identity of what has been let go.
        self._held = [*modules, *tensors]
        return [*map(id, self._held), *map(torch.Tensor.data_ptr, tensors), *_versions(tensors)]


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # there are inference tensors among them
        return [version_of(tensor) for tensor in tensors]


def _switches(layer: Any) -> Hashable:
    scales = tuple(sorted(vars(layer).get("scaling", {}).items()))
    return scales, tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.merged_adapters)
