"""What a block adds, as a linear function of its input: ridge regression over sums, never over stored features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...core.errors import StackError


@dataclass(frozen=True, eq=False)
class LinearMap:
    """x -> x W + b.

    Attributes:
        factors: (W,) with W (D, D), or (P, Q) with P (D, r), Q (r, D) and W = P Q.
        bias: (D,).
    """

    factors: tuple[torch.Tensor, ...]
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (..., D) to what the block adds to them."""
        return self.slope(x) + self.bias

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """The change of the value under a change (..., D) of the input."""
        for factor in self.factors:
            x = x @ factor
        return x

    def to(self, like: torch.Tensor) -> LinearMap:
        """The same map in a tensor's dtype, on its device."""
        return LinearMap(tuple(factor.to(like) for factor in self.factors), self.bias.to(like))


class GramSums:
    """Sums over pairs of rows (x, y) from which their best linear map follows; 2 D^2 numbers in float64.

    Every product is taken in float32, or in float64 where the rows have it.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.x, self.y = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))
        self.xx, self.xy = (torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in inputs (..., D) and what the block added to them (..., D)."""
        kind = torch.promote_types(x.dtype, torch.float32)
        x, y = x.flatten(0, -2).to(kind), y.flatten(0, -2).to(kind)
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.mT @ x
        self.xy += x.mT @ y

    def solve(self, ridge: float = 1e-3, rank: int = 0, bias: bool = True) -> LinearMap:
        """W = (X^T X + lambda I)^-1 X^T Y of the centred rows, b = mean(y) - mean(x) W: the bias is not shrunk.

        Args:
            ridge: lambda as a share of the mean diagonal of X^T X, so that it means the same in every block.
            rank: of W; 0 is full. The truncation is the best one for the rows seen (reduced-rank regression, Izenman
                1975): onto the leading right singular vectors of L^T W, with L L^T = X^T X + lambda I.
            bias: without one the rows are not centred, and b is 0.

        Raises:
            StackError: nothing was added, or ridge <= 0.
        """
        if not self.count or ridge <= 0:
            raise StackError(f"expected rows to fit and a ridge above 0, got {self.count} rows and ridge {ridge}")
        x, y = (self.x / self.count, self.y / self.count) if bias else (self.x * 0, self.y * 0)
        gram = self.xx - self.count * torch.outer(x, x)
        cross = self.xy - self.count * torch.outer(x, y)
        shrink = ridge * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
        lower = torch.linalg.cholesky(gram + shrink * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        weight = torch.cholesky_solve(cross, lower)
        factors: tuple[torch.Tensor, ...] = (weight,)
        if 0 < rank < len(weight):
            _, _, right = torch.linalg.svd(lower.mT @ weight, full_matrices=False)
            factors = (weight @ right[:rank].mT, right[:rank])
        for factor in factors:
            x = x @ factor
        return LinearMap(tuple(f.float().contiguous() for f in factors), (y - x).float())
