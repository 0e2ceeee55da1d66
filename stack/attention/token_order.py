"""In which order the latent's tokens are cut into blocks, and which of the orders each head gets.

Tokens lie row by row, so that a block of 64 is a strip of a picture. In another order it is a piece of a column, or a
compact patch. A head that looks along columns, or at one place in all frames of a video, then finds its keys in fewer
blocks. Queries, keys and values are put in order before a map is made, and the outputs are put back: the sum over keys
is the same in any order. Text and whatever else is not the latent's stays where it is.

With the nearest blocks as the map (`producers.window`) these are the spatial and the temporal band of Sparse VideoGen
(arXiv 2502.01776), which gives every head the one with the smaller error on sampled queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .maps import Grid

Shape = tuple[int, ...]


def raster(shape: Shape) -> torch.Tensor:
    """As they lie: row by row, frame by frame."""
    return torch.arange(math.prod(shape))


def transposed(shape: Shape) -> torch.Tensor:
    """The first axis fastest: column by column, and of a video one place in all frames after the other."""
    return raster(shape).view(shape).movedim(0, -1).flatten()


def hilbert(shape: Shape) -> torch.Tensor:
    """Along the Hilbert curve of the smallest cube of 2^n that holds the grid, in 2 or 3 dimensions.

    The places outside the grid are left out, so that the curve is interrupted where a side is no power of two.
    """
    places = torch.cartesian_prod(*(torch.arange(side) for side in shape))
    return _along_hilbert(places, (max(shape) - 1).bit_length()).argsort()


def _along_hilbert(places: torch.Tensor, bits: int) -> torch.Tensor:
    """How far along the curve places (N, axes) of `bits` bits lie: (N,). Skilling, AIP Conf. Proc. 707, 381 (2004)."""
    axes = list(places.unbind(1))
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1
        for i, axis in enumerate(axes):
            swap = torch.where(axis >> bit & 1 == 1, 0, (axes[0] ^ axis) & low)
            flip = torch.where(axis >> bit & 1 == 1, low, 0)
            axes[i] = axes[i] ^ swap
            axes[0] = axes[0] ^ swap ^ flip
    for i in range(1, len(axes)):
        axes[i] = axes[i] ^ axes[i - 1]
    turned = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        turned ^= torch.where(axes[-1] >> bit & 1 == 1, (1 << bit) - 1, 0)
    along = torch.zeros_like(turned)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            along = along << 1 | (axis ^ turned) >> bit & 1
    return along


ORDERS: dict[str, Callable[[Shape], torch.Tensor]] = {f.__name__: f for f in (raster, transposed, hilbert)}
RASTER = raster.__name__
BY_HEAD = "by_head"  # each head has the one of them that serves it best
AUTO = "auto"  # by head where the latent has many tokens, and enough sparse steps to make up for choosing
# In the same time by head is as good as raster order at 1,600 tokens or with 5 sparse steps. With 12 it has 3.9 dB more
# at 2,304 tokens, 0.8 at 4,096 (benchmarks/order_pictures.py).
MANY_TOKENS, MANY_STEPS = 2_048, 8


def tables(shape: Shape, grid: Grid) -> torch.Tensor:
    """Positions in the sequence (N, S), in each of `ORDERS`.

    Args:
        shape: (rows, columns) or (frames, rows, columns) that the latent's tokens lie on.
        grid: of the sequence.
    """
    found = torch.arange(grid.tokens).repeat(len(ORDERS), 1)
    for table, order in zip(found, ORDERS.values(), strict=True):
        table[grid.start : grid.start + grid.image] = grid.start + order(shape)
    return found


class TokenOrder:
    """The order of the tokens of each head, in one call.

    Args:
        found: (N, S) positions in the sequence, each once: see `tables`.
        chosen: (B, H) which of them a head has.
    """

    def __init__(self, found: torch.Tensor, chosen: torch.Tensor):
        self.chosen = chosen
        at, (batch, heads), tokens = found[chosen], chosen.shape, found.shape[1]
        samples, numbers = (torch.arange(n, device=at.device) for n in (batch, heads))
        # Token t of head h in sample b is row (b S + t) H + h of the flattened tensor: ten times faster than gather().
        self._rows = ((samples[:, None, None] * tokens + at.transpose(1, 2)) * heads + numbers).flatten()

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, S, H, D) in order."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self._rows).view(x.shape)

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, S, H, D) back at their places."""
        flat = x.reshape(-1, x.shape[-1])
        return torch.empty_like(flat).index_copy_(0, self._rows, flat).view(x.shape)
