"""Tensors that move with their module and are never cast with it."""

from __future__ import annotations

import torch
from torch import nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fixed_buffer(tensor: torch.Tensor) -> nn.Buffer:
    """A buffer with the bits of a tensor, read back with `.view(dtype)`.

    `.to(device)` and offloading hooks move it. `.half()`, `.to(torch.bfloat16)` and hooks that cast leave it alone,
    since they cast floats only: rounded weights and their steps would not survive it. It is no key of the state dict;
    `stack.quant.saved` writes what it stands for.
    """
    plain = tensor.detach()
    bits = plain.view(_INTEGERS[plain.element_size()]) if plain.is_floating_point() else plain
    return nn.Buffer(bits, persistent=False)
