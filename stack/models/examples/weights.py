"""Random weights under which every part of a model shows in its output."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Draws all weights anew, in place, whatever they were: some classes leave weights as memory had them.

    Freshly made models answer zero, or ignore their blocks, where gates and last projections begin at zero (adaLN-zero,
    Peebles and Xie 2022). Here weights of two and more axes are normal with variance 1 / inputs. Vectors are
    normal with deviation 0.1, around 0 for biases and around 1 for all others, which are mostly scales of norms.
    """
    source = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=source)
        if weight.ndim >= 2:
            weight.copy_(drawn / math.sqrt(math.prod(weight.shape[1:])))
        else:
            weight.copy_(0.1 * drawn + float(not name.endswith("bias")))
