"""The principal subspace of a feature: its basis, its rank, its projection."""

from __future__ import annotations

import math

import torch

from ..core.errors import StackError
from ..core.ranks import ALONE, Ranks

EXACT_WIDTH = 1024  # up to this width the Gram matrix's full eigendecomposition is cheap enough (about 0.1 s)
SKETCH = EXACT_WIDTH // 8  # vectors beyond that width
ITERATIONS = 2  # of the subspace behind the first


def rank_by_energy(eigenvalues: torch.Tensor, energy: float) -> int:
    """Smallest k whose leading eigenvalues hold the share `energy` of the total (methods: SVD-Cache, rank rule).

    Args:
        eigenvalues: of the Gram matrix, largest first; these are squared singular values.
        energy: in (0, 1].

    Returns:
        k in [1, len(eigenvalues)].
    """
    if not 0 < energy <= 1:
        raise StackError(f"energy must be in (0, 1], got {energy}: 0.85 keeps 85 % of the feature's energy")
    energies = eigenvalues.clamp_min(0)
    total = energies.sum()
    if total <= 0:
        return 1
    short = (energies.cumsum(0) < energy * total * (1 - 1e-6)).sum().item()
    return min(int(short) + 1, len(eigenvalues))


def rank_above_noise(eigenvalues: torch.Tensor, rows: int, noise: float) -> int:
    """How many eigenvalues of the Gram matrix stand out of noise, at least 1.

    Noise of variance v in every element of an (N, D) feature has no singular value above sqrt(v) (sqrt(N) + sqrt(D)),
    except by chance (Marchenko and Pastur 1967; Davidson and Szarek 2001, theorem II.13). Directions below that are
    noise, and turn with every step.

    Args:
        eigenvalues: (D,) or the leading ones and the sum of the others; squared singular values.
        rows: N.
        noise: relative to the feature, sqrt(v N D) / |F|.
    """
    width = len(eigenvalues)
    variance = noise**2 * float(eigenvalues.clamp_min(0).sum()) / (rows * width)
    edge = variance * (math.sqrt(rows) + math.sqrt(width)) ** 2
    return max(1, int((eigenvalues > edge).sum()))


def principal_basis(feature: torch.Tensor, energy: float, noise: float = 0.0, processes: Ranks = ALONE) -> torch.Tensor:
    """Leading right singular vectors of a feature, uncentred; every sample of a batch gets its own.

    Args:
        feature: (B, N, D).
        energy: share of each sample's squared Frobenius norm to keep.
        noise: of the feature, relative to it; directions that drown in it are left out.
        processes: those that share its tokens; the subspace is that of all of them.

    Returns:
        V (B, D, k) in the feature's dtype: orthonormal columns, and zeros where a sample needs fewer than k. The
        projection F V V^T is the best approximation of its rank (Eckart-Young), so its squared error
        is the sum of the discarded eigenvalues.
    """
    rows = feature.float()
    if rows.shape[-1] <= EXACT_WIDTH:
        values, vectors = torch.linalg.eigh(processes.sum(rows.mT @ rows))
        values, vectors = values.flip(-1), vectors.flip(-1)
    else:
        vectors, singular = _range_finder(rows, SKETCH, processes)
        # The tail beyond the sketch counts as energy too, so that `energy` keeps its meaning.
        tail = (processes.sum(rows.square().sum((1, 2))) - singular.square().sum(1)).clamp_min(0)
        values = torch.cat([singular.square(), tail[:, None]], 1)
    ranks = [min(rank_by_energy(sample, energy), vectors.shape[-1]) for sample in values]
    if noise:
        cuts = (rank_above_noise(sample, rows.shape[1] * processes.size, noise) for sample in values)
        ranks = [min(rank, cut) for rank, cut in zip(ranks, cuts, strict=True)]
    basis = vectors[..., : max(ranks)].clone()
    for sample, rank in zip(basis, ranks, strict=True):
        sample[:, rank:] = 0
    return basis.to(feature.dtype)


def _range_finder(rows: torch.Tensor, rank: int, processes: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading right singular vectors (B, D, rank) and values by subspace iteration (Halko et al. 2011, algorithm 4.4).

    Starts from its own random generator: the caller's random state is not touched.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    start = torch.randn(rows.shape[-1], rank, generator=generator).to(rows.device).expand(len(rows), -1, -1)
    for _ in range(ITERATIONS + 1):
        start, _ = torch.linalg.qr(processes.sum(rows.mT @ (rows @ start)))
    sketch = rows @ start
    if processes.alone:
        _, singular, vh = torch.linalg.svd(sketch, full_matrices=False)
        return start @ vh.mT, singular
    squares, turn = torch.linalg.eigh(processes.sum(sketch.mT @ sketch))
    return start @ turn.flip(-1), squares.flip(-1).clamp_min(0).sqrt()
