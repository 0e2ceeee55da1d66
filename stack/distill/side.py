"""A LoRA kept beside the weights, as a branch of its own: the weights below, quantized or not, are never touched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ..core.errors import StackError
from ..core.installer import Installer
from .lora import LowRank


class SideLinear(nn.Module):
    """y = base(x) + scale * up (down x): a linear of any kind with a low-rank branch beside it.

    Takes (..., K), returns (..., N) in the dtype of the base's output. At scale 0 that output is the base's, bit for
    bit. The branch is not in the state dict.

    Attributes:
        base: the linear as it was found.
    """

    down: torch.Tensor
    up: torch.Tensor
    extra: torch.Tensor | None

    def __init__(self, base: nn.Module, update: LowRank, scale: float, like: torch.Tensor):
        super().__init__()
        self.base = base
        self.in_features, self.out_features = update.down.shape[1], update.up.shape[0]
        factor = scale * update.scaling
        up = update.up.float() * factor
        self.register_buffer("down", update.down.to(like), persistent=False)
        self.register_buffer("up", up.to(like), persistent=False)
        extra = None if update.bias is None else (update.bias.float() * factor).to(like)
        self.register_buffer("extra", extra, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        out = self.base(x)
        return out + self.branch(x.to(self.down.dtype)).to(out.dtype)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """What is added, in the branch's own dtype."""
        return functional.linear(functional.linear(x, self.down), self.up, self.extra)


class SideConv2d(SideLinear):
    """As `SideLinear`, beside a convolution: takes (B, K, H, W), returns what its base does, (B, N, H', W')."""

    base: nn.Conv2d

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """See `SideLinear.branch`."""
        conv = self.base
        low = functional.conv2d(x, self.down, None, conv.stride, conv.padding, conv.dilation)
        return functional.conv2d(low, self.up, self.extra)


def _beside(base: nn.Module, update: LowRank, scale: float, like: torch.Tensor) -> SideLinear:
    kind = SideConv2d if isinstance(base, nn.Conv2d) else SideLinear
    return kind(base, update, scale, like)


def put_beside(root: nn.Module, updates: Mapping[str, LowRank], scale: float, install: Installer) -> int:
    """Put a branch beside each linear and convolution that has an update.

    Returns:
        The number of those that have one.

    Raises:
        StackError: an update goes beyond the weights' type. Nothing is changed then.
    """
    # Weights cast to 8 bits are no type to compute in.
    like = next(p for p in root.parameters() if p.is_floating_point() and torch.finfo(p.dtype).bits >= 16)
    made = {p: _beside(root.get_submodule(p), update, scale, like.data) for p, update in updates.items()}
    for path, side in made.items():
        if not all(bool(tensor.isfinite().all()) for tensor in side.buffers(recurse=False)):
            raise StackError(
                f"the update of {path} at scale {scale:g} is beyond {like.dtype}: expected a smaller scale"
            )
    for path, side in made.items():
        install.replace_module(root, path, side)
    return len(made)
