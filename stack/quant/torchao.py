"""The backend for GPUs: torchao's int8 dynamic quantization, with its own kernels under `torch.compile`.

In eager mode torchao's int8 is slower than bf16 on any device; compile the denoiser's blocks to gain from it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import StackError

MULTIPLE = 8  # torch._int_mm on CUDA takes in and out features in multiples of this


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao warns at import about kernels built for other machines: nothing a user can act on."""
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class NonEmpty(nn.Module):
    """A torchao linear that also takes zero tokens, which its kernels do not."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], self.out_features))
        return self.linear(x)


def convert(linear: nn.Linear) -> NonEmpty:
    """An int8 copy of a linear: weights per output channel, activations per row. The linear itself is not touched.

    Raises:
        StackError: torchao is missing or too old.
    """
    try:
        with _quiet():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise StackError(f"quantize(backend='torchao') needs torchao: pip install 'torchao>=0.15' ({error})") from None
    holder = nn.Sequential(copy.deepcopy(linear))
    # torchao would otherwise change process-wide compiler settings.
    quantize_(holder, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    converted = holder[0]
    assert isinstance(converted, nn.Linear)
    if type(converted.weight) is nn.Parameter:
        raise StackError(f"torchao left a linear of shape {tuple(linear.weight.shape)} as it was: use backend='native'")
    return NonEmpty(converted)


def held_bytes(converted: NonEmpty) -> int:
    """Memory of the converted weight: int8 values and one float step per output channel."""
    weight = converted.linear.weight
    return weight.numel() + weight.shape[0] * torch.finfo(weight.dtype).bits // 8
