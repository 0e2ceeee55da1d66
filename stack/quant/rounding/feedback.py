"""Rounding with error feedback: what one input channel's rounding did is made up for by the channels still to come.

For a linear y = W x the squared output error of rounded weights is tr(D H D^T), D = W' - W, H = E[x x^T]. Frantar et al.
(2022), arXiv 2210.17323, eqs. 2 and 3: channel j is rounded, and its error is spread over the channels left so that the
output changes least, which takes row j of the Cholesky factor of H^-1.
"""

from __future__ import annotations

import torch

from .grids import SMALLEST_SCALE, Coded, Grid, group_scales, nearest, spread, storable

DAMPING = 0.01  # of the mean diagonal, added to it: keeps channels that calibration never saw from running away
SWEEPS = 2


def damped(moment: torch.Tensor) -> torch.Tensor:
    """H (K, K) with a little of its mean diagonal added, symmetric, float64; a matrix of zeros becomes the identity."""
    moment = (moment.double() + moment.double().T) / 2
    mean = moment.diagonal().mean()
    if mean <= 0:
        return torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    return moment + DAMPING * mean * torch.eye(len(moment), dtype=torch.float64, device=moment.device)


def output_error(difference: torch.Tensor, moment: torch.Tensor) -> float:
    """Mean squared norm of the output error, tr(D H D^T), of a weight difference D (N, K)."""
    d = difference.double()
    return float(((d @ moment.double()) * d).sum())


def round_with_feedback(weight: torch.Tensor, grid: Grid, moment: torch.Tensor, sweeps: int = SWEEPS) -> Coded:
    """Codes and scales for a weight (N, K), with the least output error that this finds.

    Error feedback first, channels with the largest second moment first; then scales and codes in turn: the best scales
    for the codes are a least-squares fit, the best code of one channel for all others fixed is a rounding.

    Args:
        moment: (K, K) second moment of the inputs, E[x x^T], or their covariance where the bias takes up the mean.
        sweeps: turns of refitting scales and codes.

    Returns:
        never worse than plain rounding with the same grid under the damped moment.
    """
    weight, moment = weight.detach().float(), damped(moment)
    scale = group_scales(weight, grid, moment.diagonal().float())
    coded = _fed_back(weight, grid, scale, moment)
    for _ in range(sweeps):
        coded = _refitted(weight, grid, coded, moment)
        coded = _swept(weight, grid, coded, moment)
    return coded


def _order(moment: torch.Tensor) -> torch.Tensor:
    return moment.diagonal().argsort(descending=True)


def _fed_back(weight: torch.Tensor, grid: Grid, scale: torch.Tensor, moment: torch.Tensor) -> Coded:
    inner = weight.shape[1]
    order = _order(moment)
    inverse = torch.linalg.inv(moment[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    wide = spread(scale, grid.width(inner), inner)[:, order]
    safe = torch.where(wide.abs() < SMALLEST_SCALE, torch.ones_like(wide), wide)
    levels, left = grid.levels(weight.device), weight[:, order].clone()
    codes = torch.empty_like(left, dtype=torch.uint8)
    for j in range(inner):
        codes[:, j] = nearest(left[:, j] / safe[:, j], levels)
        error = (left[:, j] - levels[codes[:, j].int()] * wide[:, j]) / upper[j, j]
        left[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return Coded(codes[:, order.argsort()], scale)


def _refitted(weight: torch.Tensor, grid: Grid, coded: Coded, moment: torch.Tensor) -> Coded:
    """The scales with the least output error for these codes, row by row: (C H C^T) s = C H w."""
    inner = weight.shape[1]
    width = grid.width(inner)
    rows, groups = coded.scale.shape
    value = grid.levels(weight.device)[coded.codes.int()].double()
    parts = torch.zeros(rows, groups, inner, dtype=torch.float64, device=weight.device)
    place = (torch.arange(inner, device=weight.device) // width).expand(rows, 1, inner)
    parts.scatter_(1, place, value[:, None])
    pushed = parts @ moment
    left = pushed @ parts.mT
    ridge = 1e-9 * left.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    left = left + ridge[:, None, None] * torch.eye(groups, dtype=torch.float64, device=weight.device)
    right = (pushed @ weight.double()[:, :, None])
    fitted = storable(torch.linalg.solve(left, right).squeeze(2).float())
    return Coded(coded.codes, fitted)


def _swept(weight: torch.Tensor, grid: Grid, coded: Coded, moment: torch.Tensor) -> Coded:
    """Each channel's codes anew, the others as they are."""
    inner = weight.shape[1]
    wide = spread(coded.scale, grid.width(inner), inner)
    safe = torch.where(wide.abs() < SMALLEST_SCALE, torch.ones_like(wide), wide)
    levels, h = grid.levels(weight.device), moment.float()
    codes = coded.codes.clone()
    difference = levels[codes.int()] * wide - weight
    gradient = difference @ h
    for j in _order(moment).tolist():
        wanted = weight[:, j] + difference[:, j] - gradient[:, j] / h[j, j]
        codes[:, j] = nearest(wanted / safe[:, j], levels)
        change = levels[codes[:, j].int()] * wide[:, j] - weight[:, j] - difference[:, j]
        difference[:, j] += change
        gradient += change[:, None] * h[j]
    return Coded(codes, coded.scale)
