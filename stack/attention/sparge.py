"""SpargeAttn's kernel under our maps, for CUDA: 8-bit scores, and blocks that the map leaves out are skipped.

Zhang et al. 2025 (arXiv 2502.18137), package `spas_sage_attn` (https://github.com/thu-ml/SpargeAttn, Apache-2.0), which
has no wheel and is built from source. Of it only the kernel is used, `block_sparse_sage2_attn_cuda`. Not run on a GPU
by us yet: the tests hold what it is given to a stand-in that computes the same from the same map.

What the kernel cannot be given is refused (`unfit`) or put right before it: its tiles are 128 queries by 64 keys, on
Hopper 64 by 128, of which our blocks of 128 are whole multiples; values are multiplied in fp16 and are scaled into its
range as for SageAttention (`sage.scaled`). It returns no log-sum-exp, so that what was left out is not added.
"""

from __future__ import annotations

import torch

from ..core.errors import StackError
from ..core.facts import Machine
from .flex import kept_tiles, off_tiles, on_tiles
from .maps import Grid
from .sage import DTYPES, scaled

MODULE = "spas_sage_attn"
TILE = 128  # of the sequence: another length fails an assertion of the kernel on Hopper
HEAD_SIZES = (64, 128)
CAPABILITIES = ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0))
HOPPER = (9, 0)


def unfit_machine(machine: Machine, head_dim: int, dtype: torch.dtype, there: bool) -> str:
    """Why it cannot compute a model, or "".

    Args:
        head_dim: 0 where it is not known.
        there: the package is installed.
    """
    if machine.device != "cuda" or machine.capability not in CAPABILITIES:
        found = machine.device if machine.device != "cuda" else f"compute capability {machine.capability}"
        return f"expected a GPU of compute capability 8.0 to 9.0, got {found}"
    if not there:
        return "the package is missing: build it from https://github.com/thu-ml/SpargeAttn"
    if head_dim not in (0, *HEAD_SIZES):
        return f"expected heads of {' or '.join(map(str, HEAD_SIZES))}, got {head_dim}"
    return "" if dtype in DTYPES else f"expected fp16 or bf16, got {str(dtype).removeprefix('torch.')}"


def unfit(tokens: int, seen: torch.Tensor | None) -> str:
    """Why it cannot compute a call, or ""."""
    if seen is not None:
        return "SpargeAttn takes no mask"
    return f"SpargeAttn takes whole tiles of {TILE} tokens" if tokens % TILE else ""


def tiles_of(kept: torch.Tensor, grid: Grid, capability: tuple[int, int]) -> torch.Tensor:
    """The map (B, H, rows, blocks) as the kernel reads it: (B, H, query tiles, key tiles) int8, 1 where computed."""
    return kept_tiles(kept, grid).repeat_interleave(2, 2 if capability == HOPPER else 3).to(torch.int8)


def sparge_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, grid: Grid, capability: tuple[int, int]
) -> torch.Tensor:
    """Attention by a map, (B, S, H, D) in and out.

    Raises:
        StackError: the package is not installed.
    """
    try:
        from spas_sage_attn import block_sparse_sage2_attn_cuda
    except ImportError as error:
        raise StackError(f"SpargeAttn cannot be imported ({error}): build it, or leave kernel='sparge' out") from error
    values, unit = scaled(v)
    query, key, value = (on_tiles(x, grid).transpose(1, 2).contiguous() for x in (q, k, values))
    out: torch.Tensor = block_sparse_sage2_attn_cuda(query, key, value, mask_id=tiles_of(kept, grid, capability))
    return off_tiles(out.transpose(1, 2), grid) * unit
