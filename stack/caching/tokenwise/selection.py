"""Which tokens a conservative step recomputes: random ones or those of small value, the long-cached ones first.

No rule looks at an attention map, so that fused attention stays. DuCa's second version (arXiv 2412.18911v2) found
random tokens as good as important ones, which resemble each other.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize, pad

RULES = ("random", "values")


def random_scores(tokens: int, step: int, place: int) -> torch.Tensor:
    """Scores (1, N) in [0, 1), the same for every request, guidance branch, sample and device.

    The seed is the step and the number of the module, nothing else: a picture must not depend on what was drawn
    before it, and guidance breaks where its branches refresh different tokens.
    """
    generator = torch.Generator().manual_seed((step << 20) + place)
    return torch.rand(1, tokens, generator=generator)


def value_scores(values: torch.Tensor, head_dim: int) -> torch.Tensor:
    """DuCa's V-norm: sum_h (1 - ||v_h||), L2-normalised over the tokens; small values tend to draw the attention.

    Args:
        values: output of the value projection (B, N, H * head_dim).

    Returns:
        Scores (B, N).
    """
    norms = values.unflatten(-1, (-1, head_dim)).float().norm(dim=-1)
    return normalize((1 - norms).sum(-1), dim=1)


def shared_by_halves(scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, N) of a batch whose halves are the two guidance branches: the mean of both, for both."""
    halves = scores.unflatten(0, (2, -1))
    return halves.mean(0, keepdim=True).expand_as(halves).flatten(0, 1)


def with_bonus(scores: torch.Tensor, grid: tuple[int, ...], cell: int, bonus: float) -> torch.Tensor:
    """Scores (B, N) with the best token of every cell of cell x cell tokens raised by `bonus` of its magnitude.

    Cells lie within a frame, and are cut off at its lower and right border where they do not tile it.
    The published form adds a share of the score itself, which would lower a negative one.

    Args:
        grid: of the tokens, (rows, columns) or (frames, rows, columns).
    """
    rows, columns = grid[-2:]
    frames = scores.unflatten(1, (-1, rows, columns))
    # What is not there is never the best of its cell.
    whole = pad(frames, (0, -columns % cell, 0, -rows % cell), value=-math.inf)
    tiled = whole.unflatten(3, (-1, cell)).unflatten(2, (-1, cell))
    cells = tiled.movedim(3, 4).flatten(4)
    best = cells.argmax(-1, keepdim=True)
    raised = cells.scatter_add(-1, best, bonus * cells.gather(-1, best).abs())
    return raised.unflatten(4, (cell, cell)).movedim(4, 3).flatten(4).flatten(2, 3)[:, :, :rows, :columns].flatten(1)


def older(ages: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Conservative steps since each token was computed (1 or B, N), after a step that computed the chosen (.., K)."""
    return (ages + 1).scatter_(1, chosen, 0.0)


def flat_rows(chosen: torch.Tensor, tokens: int, batch: int) -> torch.Tensor:
    """Token numbers (1 or B, K) as row numbers (B * K,) of a (B * N, D) matrix: one index to gather and scatter by."""
    starts = torch.arange(batch, device=chosen.device)[:, None] * tokens
    return (chosen + starts).flatten()


def gather(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The chosen tokens (B, K, D) of x (B, N, D)."""
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, (len(x), -1))


def scatter(into: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`into` (B, N, D), contiguous, with the chosen tokens overwritten by values (B, K, D), in place."""
    into.view(-1, into.shape[-1]).index_copy_(0, rows, values.flatten(0, 1))
    return into
