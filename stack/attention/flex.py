"""Block-sparse attention by FlexAttention, for CUDA."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ..core.errors import StackError
from .maps import Grid
from .remainder import add_remainder


class Flex:
    """Compiled attention, one copy per grid, shape and layout.

    Uncompiled FlexAttention ignores the block lists and computes every score, and a function that was compiled for
    eight shapes runs uncompiled from the ninth on. So every shape has a function of its own, which is compiled as one
    graph and refuses to run uncompiled. A pass owns the copies, and what was compiled for them goes when it goes.

    Args:
        backend: of `torch.compile`.
        most: copies that are kept; beyond it the one that was used longest ago is dropped.
        remainder: add the pooled remainder of the dropped blocks. FlexAttention compiled for a CPU cannot: it has no
            log-sum-exp there.

    Attributes:
        compiled: copies made so far.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor", most: int = 32, remainder: bool = True) -> None:
        self.backend, self.most, self.remainder, self.compiled = backend, most, remainder, 0
        self._copies: OrderedDict[object, Callable[..., torch.Tensor]] = OrderedDict()

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kept: torch.Tensor,
        grid: Grid,
        seen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`kernels.sparse_attention`: the same arguments, the same result.

        Raises:
            StackError: torch.compile is switched off.
        """
        # What mask functions look up is made out here: compiled kernels read it best from where it was handed in.
        tables = (kept, kept_tiles(kept, grid), None if seen is None else on_tiles(seen, grid))
        return self._copy(grid, q, k, v, *tables)(q, k, v, *tables, grid, self.remainder)

    def _copy(self, grid: Grid, *tensors: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        # All that the compiler would make another version for, but for process-wide settings such as the gradient mode.
        key = (grid, *(None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in tensors))
        if key not in self._copies:
            self._copies[key] = _compile(self.backend)
            self.compiled += 1
            if len(self._copies) > self.most:
                self._copies.popitem(last=False)
        self._copies.move_to_end(key)
        return self._copies[key]


def _compile(backend: str | Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """A compiled copy of `_compiled` with its own code object, by which torch.compile keeps and counts what it made."""
    # Not before it is needed: importing the compiler takes a second.
    from torch._dynamo.eval_frame import remove_from_cache

    own = FunctionType(_compiled.__code__.replace(), _compiled.__globals__, _compiled.__name__)
    copy = torch.compile(own, backend=backend, dynamic=False, fullgraph=True)
    # What was compiled refers to its code and is kept by it, so nothing else would free it.
    weakref.finalize(copy, remove_from_cache, own).atexit = False
    return copy


def _compiled(*arguments: Any) -> torch.Tensor:
    if not torch.compiler.is_compiling():  # looked at while it is compiled, so that it costs nothing later
        raise StackError(
            "sparse attention on CUDA needs torch.compile, which is switched off; without it every score would be "
            "computed: leave TORCHDYNAMO_DISABLE and set_stance alone, or take sparse_attn off"
        )
    return flex_with_tables(*arguments)


def flex_with_tables(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    tiles: torch.Tensor,
    seen: torch.Tensor | None,
    grid: Grid,
    remainder: bool = True,
) -> torch.Tensor:
    """What is compiled. (B, S, H, D) in and out. Uncompiled it gives the same result, but computes every score.

    Args:
        kept: (B, H, rows, blocks) boolean map.
        tiles: `kept_tiles` of it.
        seen: (B, S) in the order of `on_tiles`.
    """
    mask = flex_mask(tiles, grid, seen)
    query, key, value = (on_tiles(x, grid).transpose(1, 2) for x in (q, k, v))
    wanted = AuxRequest(lse=remainder)
    out, aux = flex_attention(query, key, value, block_mask=mask, return_aux=wanted)
    out, first = off_tiles(out.transpose(1, 2), grid), _first_tile(grid) * grid.key
    if aux.lse is None:
        return out
    return add_remainder(out, aux.lse[:, :, first : first + grid.blocks * grid.key], q, k, v, kept, grid)


def flex_mask(tiles: torch.Tensor, grid: Grid, seen: torch.Tensor | None = None) -> BlockMask:
    """The map as lists of key tiles, as long as each query tile needs them. Arguments as in `flex_with_tables`.

    The compiled kernel skips by the lists alone. The mask function repeats the map for backends that do not skip.
    """
    outside = torch.ones(tiles.shape[-1], dtype=torch.bool, device=tiles.device)
    outside[_first_tile(grid) : _first_tile(grid) + grid.blocks] = False
    # No score is masked inside a full tile. Those outside the blocks are partial ones where some keys are hidden.
    partial = tiles & (outside if seen is not None else torch.zeros_like(outside))

    def looked_up(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        kept = tiles[b, h, query // grid.key, key // grid.key]
        return kept if seen is None else kept & seen[b, key]

    return BlockMask.from_kv_blocks(
        *_lists(partial),
        *_lists(tiles & ~partial),
        BLOCK_SIZE=grid.key,
        mask_mod=looked_up,
        seq_lengths=(grid.tokens, grid.tokens),
        compute_q_blocks=torch.is_grad_enabled(),  # lists by key, which only a backward pass reads
    )


def _lists(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tiles (B, H, tiles) each query tile has in a table, and which (B, H, tiles, tiles): these come first."""
    return table.sum(-1, dtype=torch.int32), (~table).to(torch.int8).argsort(dim=-1, stable=True).int()


def kept_tiles(kept: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The map as a table (B, H, tiles, tiles), True where a query tile sees a key tile, in the order of `on_tiles`."""
    first, tiles = _first_tile(grid), -(-grid.tokens // grid.key)
    image = slice(first, first + grid.blocks)
    table = torch.ones(*kept.shape[:2], tiles, tiles, dtype=torch.bool, device=kept.device)
    table[:, :, image, image] = kept.repeat_interleave(grid.group, 2)[:, :, : grid.blocks]
    return table


def on_tiles(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, S, ...) in an order in which every block is one of FlexAttention's tiles: as it is, or with blocks first."""
    if grid.start % grid.key == 0:
        return x
    return torch.cat([x[:, grid.start : grid.end], x[:, : grid.start], x[:, grid.end :]], 1)


def off_tiles(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, S, ...) back from the order of `on_tiles`."""
    if grid.start % grid.key == 0:
        return x
    inside = grid.end - grid.start
    return torch.cat([x[:, inside : inside + grid.start], x[:, :inside], x[:, inside + grid.start :]], 1)


def _first_tile(grid: Grid) -> int:
    """The tile of the first block in that order."""
    return 0 if grid.start % grid.key else grid.start // grid.key
