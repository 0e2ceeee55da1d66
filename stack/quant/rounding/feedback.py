"""Rounding with error feedback: channels still to be rounded make up for the error of those before.

For a linear y = W x the mean squared output error of rounded weights is tr(D H D^T), D = W' - W, H = E[x x^T]. Frantar
et al. (2022), arXiv 2210.17323, eqs. 2 and 3: channel j is rounded, and its error is spread over the channels left so
that the output changes least, which takes row j of the Cholesky factor of H^-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .grids import Rounded, RoundingGrid, fitted

DAMPING = 0.01  # of the mean diagonal, added to it: keeps channels that calibration never saw from running away
SWEEPS = 2
BLOCK = 64  # channels whose effect on the others is added in one product


def damped(moment: torch.Tensor) -> torch.Tensor:
    """H (K, K), symmetric, with a little of its mean diagonal added; a matrix of zeros becomes the identity."""
    moment = (moment + moment.T) / 2
    mean = moment.diagonal().mean()
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment + DAMPING * mean * eye if mean > 0 else eye


def output_error(difference: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Mean square of each output's error, (N,): the diagonal of D H D^T, of a weight difference D (N, K)."""
    d = difference.double()
    return ((d @ moment.double()) * d).sum(1)


def round_with_feedback(
    weight: torch.Tensor, grid: RoundingGrid, moment: torch.Tensor, sweeps: int = SWEEPS
) -> Rounded:
    """The weight (N, K) on a grid, with the least output error that this finds.

    Error feedback first, channels with the largest second moment first. Then steps and codes in turn: the best steps
    for given codes are a least-squares fit, the best code of one channel for all others fixed is a rounding.

    Args:
        moment: (K, K) second moment of the inputs, E[x x^T], or their covariance where the bias takes up the mean.
        sweeps: turns of fitting steps and codes.

    Returns:
        row by row the best of plain rounding and of what each turn found, under the damped moment.
    """
    weight, moment = weight.detach().float(), damped(moment.float())
    plain = fitted(weight, grid, moment.diagonal())
    found = [plain, _fed_back(weight, grid, plain, moment)]
    for _ in range(sweeps):
        found.append(_swept(weight, grid, _refitted(weight, grid, found[-1], moment), moment))
    return _best_rows(weight, grid, found, moment)


def _best_rows(weight: torch.Tensor, grid: RoundingGrid, found: Sequence[Rounded], moment: torch.Tensor) -> Rounded:
    """Each row from where its output error is smallest."""
    errors = torch.stack([output_error(grid.decoded(rounded) - weight, moment) for rounded in found])
    best, rows = errors.argmin(0), torch.arange(len(weight), device=weight.device)
    codes, step, low = (
        torch.stack([getattr(rounded, name) for rounded in found])[best, rows] for name in ("codes", "step", "low")
    )
    return Rounded(codes, step, low)


@dataclass
class _Columns:
    """A weight on a grid in the order in which its channels are rounded; column by column, each one contiguous.

    Attributes:
        order: (K,) channels, largest second moment first.
        moment: (K, K).
        target: (K, N) the weight, from its groups' lows on.
        step: (K, N).
        codes: (K, N) indices of levels.
        value: (K, N) what the codes stand for, from the lows on.
    """

    grid: RoundingGrid
    order: torch.Tensor
    moment: torch.Tensor
    target: torch.Tensor
    step: torch.Tensor
    codes: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, grid: RoundingGrid, rounded: Rounded, moment: torch.Tensor) -> _Columns:
        inner, order = weight.shape[1], moment.diagonal().argsort(descending=True)
        step, low = (grid.spread(values, inner) for values in (rounded.step, rounded.low))
        value = grid.levels(weight.device)[rounded.codes.int()] * step
        target, step, codes, value = (x.T[order] for x in (weight - low, step, rounded.codes, value))
        return cls(grid, order, moment[order][:, order], target, step, codes, value)

    def __post_init__(self) -> None:
        device = self.target.device
        self._levels, self._middles = self.grid.levels(device), self.grid.middles(device)
        self._inverse = self.grid.safe(self.step).reciprocal()

    def round(self, j: int, wanted: torch.Tensor) -> torch.Tensor:
        """Give a column the codes nearest to these values (N,); returns what they stand for."""
        codes = torch.bucketize(wanted * self._inverse[j], self._middles)
        self.codes[j] = codes
        self.value[j] = self._levels[codes] * self.step[j]
        return self.value[j]

    def into(self, rounded: Rounded) -> Rounded:
        """With these codes."""
        return replace(rounded, codes=self.codes[self.order.argsort()].T.contiguous())


def _fed_back(weight: torch.Tensor, grid: RoundingGrid, start: Rounded, moment: torch.Tensor) -> Rounded:
    columns = _Columns.of(weight, grid, start, moment)
    upper, left = _inverse_factor(columns.moment), columns.target.clone()
    inner = len(left)
    scaled = upper / upper.diagonal()[:, None]
    for a in range(0, inner, BLOCK):
        b = min(a + BLOCK, inner)
        errors = torch.empty_like(left[a:b])
        for j in range(a, b):
            errors[j - a] = left[j] - columns.round(j, left[j])
            left[j + 1 : b].addr_(scaled[j, j + 1 : b], errors[j - a], alpha=-1)
        left[b:].addmm_(scaled[a:b, b:].T, errors, alpha=-1)
    return columns.into(start)


def _inverse_factor(moment: torch.Tensor) -> torch.Tensor:
    """U, upper triangular, with U^T U = H^-1."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment.double()))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _refitted(weight: torch.Tensor, grid: RoundingGrid, rounded: Rounded, moment: torch.Tensor) -> Rounded:
    """The steps with the least output error for these codes, row by row: (C H C^T) s = C H w, C the levels by group."""
    inner, group = weight.shape[1], grid.scheme.group
    value = grid.levels(weight.device)[rounded.codes.int()]
    target = (weight - grid.spread(rounded.low, inner)) @ moment
    starts = range(0, inner, group)
    left = torch.stack([_by_group((value[:, a : a + group] @ moment[a : a + group]) * value, group) for a in starts], 1)
    right = _by_group(target * value, group)
    ridge = 1e-6 * left.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    left = left + ridge[:, None, None] * torch.eye(len(starts), device=weight.device)
    step = torch.linalg.solve(left.double(), right.double()[..., None]).squeeze(2)
    return replace(rounded, step=grid.storable(step.float()))


def _by_group(values: torch.Tensor, group: int) -> torch.Tensor:
    """Sums (N, G) of values (N, K) over the channels of each group."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % group)).unflatten(1, (-1, group)).sum(2)


def _swept(weight: torch.Tensor, grid: RoundingGrid, rounded: Rounded, moment: torch.Tensor) -> Rounded:
    """Each channel's codes anew, all others as they are."""
    columns = _Columns.of(weight, grid, rounded, moment)
    h, inner = columns.moment, len(columns.target)
    scaled = h / h.diagonal()[:, None]
    for a in range(0, inner, BLOCK):
        b = min(a + BLOCK, inner)
        # What the other channels' errors ask of each channel of the block.
        pull = scaled[a:b] @ (columns.value - columns.target)
        for j in range(a, b):
            before = columns.value[j].clone()
            change = columns.round(j, before - pull[j - a]) - before
            pull.addr_(scaled[a:b, j], change)
    return columns.into(rounded)
