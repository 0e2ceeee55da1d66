"""The error of a quantized model split into a part that neighbouring inputs share and one that they do not.

A cache lives on differences between neighbouring steps. An error that both steps share cancels in a difference (bias);
one that they do not share is amplified (random; docs/sensitivity.md has the reasoning). Dynamic quantization of the
very same input is deterministic, so randomness can only be seen between neighbouring inputs: n disturbed copies of one
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.errors import StackError


@dataclass(frozen=True)
class Errors:
    """Sums of one feature's errors at the neighbours of one input.

    Attributes:
        gram: (n, n) float64 scalar products of the errors e_i = q(x_i) - f(x_i).
        power: mean square norm of the unquantized feature.
    """

    gram: torch.Tensor
    power: float


@dataclass(frozen=True)
class ErrorSplit:
    """Relative errors of one feature: root mean squares, as shares of the feature's norm. total^2 = random^2 + bias^2.

    Attributes:
        uncertainty: standard error of `bias`, and where the random part is at least as large, of `random` as well.
    """

    total: float
    random: float
    bias: float
    uncertainty: float


def errors_of(plain: Sequence[torch.Tensor], quantized: Sequence[torch.Tensor]) -> Errors:
    """Errors of one feature at n neighbours of one input.

    Args:
        plain, quantized: n tensors each, of any one shape.

    Raises:
        StackError: fewer than two neighbours.
    """
    if len(plain) < 2 or len(plain) != len(quantized):
        raise StackError(f"expected the same two or more neighbours twice, got {len(plain)} and {len(quantized)}")
    flat = torch.stack([(q.float() - f.float()).flatten() for f, q in zip(plain, quantized, strict=True)]).double()
    return Errors(flat @ flat.T, sum(float(f.float().square().sum()) for f in plain) / len(plain))


def split_errors(calls: Sequence[Errors]) -> ErrorSplit:
    """Random and bias part, pooled over independent calls.

    Model: e_i = b + r_i, the r_i independent of each other with mean zero. Then E<e_i, e_j> = |b|^2 for i != j and
    E|e_i|^2 = |b|^2 + E|r|^2, so both powers have unbiased estimates:
    bias^2 = mean over i != j of <e_i, e_j>, random^2 = mean of |e_i|^2 - bias^2. A negative one counts as 0.
    The uncertainty is the jackknife's over the neighbours (Efron and Stein 1981), calls being independent.

    Raises:
        StackError: no calls.
    """
    if not calls:
        raise StackError("expected the errors of at least one call, got none")
    power = sum(c.power for c in calls)
    if power <= 0:
        return ErrorSplit(0.0, 0.0, 0.0, 0.0)
    total = sum(float(c.gram.diagonal().mean()) for c in calls) / power
    bias = sum(_shared(c.gram) for c in calls) / power
    variance = sum(_jackknife(c.gram) for c in calls) / power**2
    bias = min(max(bias, 0.0), total)
    root = max(bias, variance**0.5) ** 0.5  # where the bias is lost in its own error, that error's root is its size
    return ErrorSplit(total**0.5, (total - bias) ** 0.5, bias**0.5, variance**0.5 / (2 * root) if root else 0.0)


def _shared(gram: torch.Tensor) -> float:
    """Mean scalar product of two different errors."""
    n = len(gram)
    return float((gram.sum() - gram.diagonal().sum()) / (n * (n - 1)))


def _jackknife(gram: torch.Tensor) -> float:
    """Variance of `_shared`; with two neighbours there is nothing to leave out, and all of it counts as uncertain."""
    n = len(gram)
    if n < 3:
        return _shared(gram) ** 2
    left = torch.tensor([_shared(gram[rest][:, rest]) for rest in _leaving_one_out(n)], dtype=torch.float64)
    return float((left - left.mean()).square().sum()) * (n - 1) / n


def _leaving_one_out(n: int) -> list[list[int]]:
    return [[i for i in range(n) if i != left] for left in range(n)]
