"""Bounds of rounding, of subspaces and of sparse attention over the truth, on typical inputs."""

from __future__ import annotations

import math

import torch
from predictability_maps import split

from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense
from stack.attention.maps import Grid, block_map, keep_mask
from stack.attention.producers import sampled as shares
from stack.bounds import (
    dropped_mass_bound,
    filler_share_bound,
    level_rounding_bound,
    merged_share,
    rounding_share,
    sin_theta_bound,
)
from stack.compat.subspace import principal_basis
from stack.quant.formats import NF4_LEVELS, load, store
from stack.quant.kernels.rows import ZERO, quantize_rows, quantize_weight
from stack.quant.schemes import SCHEMES

from .documented import (
    hoeffding_margin,
    int8_matmul_bound,
    int8_matmul_likely_bound,
    moved_scores_bound,
    truncation_error,
)

CHANCE = 1e-3
INNER = 1024
NF4, LEVELS = SCHEMES["nf4"], torch.tensor(NF4_LEVELS)
GRID = Grid(text=16, image=256, key=16, group=2)


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _product(seed: int) -> tuple[torch.Tensor, ...]:
    """Errors (M, N) of a product of rounded rows and weights, steps, rows and weights."""
    x, w = normal(seed, 4, INNER), normal(seed + 1, 16, INNER)
    values, x_step = quantize_rows(x.float())
    rows, x_step = (values.double() - ZERO) * x_step.double(), x_step.double()
    codes, w_step = quantize_weight(w.float(), 127)
    w_step = w_step.double()
    error = (x @ w.mT - rows @ (codes.double() * w_step[:, None]).mT).abs()
    return error, x_step, w_step, x, w


def product(seed: int) -> list[float]:
    """An int8 product over K = 1,024, whatever the roundings."""
    error, x_step, w_step, x, w = _product(seed)
    bound = int8_matmul_bound(x_step, w_step, x.abs().sum(1, keepdim=True), w.abs().sum(1), INNER)
    return (bound / error).flatten().tolist()


def likely_product(seed: int) -> list[float]:
    """The same, but for a chance of one in a thousand."""
    error, x_step, w_step, x, w = _product(seed)
    bound = int8_matmul_likely_bound(x_step, w_step, x.norm(dim=1, keepdim=True), w.norm(dim=1), INNER, CHANCE)
    return (bound / error).flatten().tolist()


def levels(seed: int) -> list[float]:
    """Weights on nf4's levels."""
    weight = normal(seed, 8, 128).float()
    stored = store(weight, NF4)
    wide = stored.step.repeat_interleave(NF4.group, 1)[:, :128]
    error = (load(stored, torch.float32) - weight).abs()
    return (level_rounding_bound(LEVELS) * wide / error.clamp_min(1e-12)).flatten().tolist()


def merged(seed: int) -> list[float]:
    """Share of an update that survives a fixed grid, expected over measured."""
    ratio = 0.2 + 0.2 * (seed % 8)
    update, grid = normal(seed, 200_000) * ratio, normal(seed + 1, 200_000).mul(50).round()
    return [merged_share(ratio) / float(rounding_share(grid, (grid + update).round(), update))]


def truncation(seed: int) -> list[float]:
    """The principal subspace of a feature."""
    feature = normal(seed, 1, 64, 32) * torch.logspace(0, -2, 32, dtype=torch.float64)
    basis = principal_basis(feature.float(), 0.9)[0]
    rest = split(feature[0].float(), basis)[1].norm()
    return [float(truncation_error(torch.linalg.svdvals(feature[0]), basis.shape[1]) / rest)]


def _disturbed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The Gram matrix of a feature with four strong directions, and the noise that 2 % of its power makes in it."""
    feature = normal(seed, 256, 32) * torch.where(torch.arange(32) < 4, 4.0, 0.5)
    noisy = feature + 0.02 * feature.norm() / feature.numel() ** 0.5 * normal(seed + 1, 256, 32)
    gram = feature.mT @ feature
    return gram, noisy.mT @ noisy - gram


def angle(seed: int) -> list[float]:
    """Its four leading directions under noise."""
    gram, noise = _disturbed(seed)
    values, old = torch.linalg.eigh(gram)
    new = torch.linalg.eigh(gram + noise).eigenvectors
    sine = math.sqrt(4 - float((old[:, -4:].mT @ new[:, -4:]).square().sum().clamp(max=4)))
    bound = sin_theta_bound(float(torch.linalg.matrix_norm(noise, 2)), float(values[-4] - values[-5]), 4)
    return [bound / sine]


def dropped(seed: int) -> list[float]:
    """Block-sparse attention at half of the blocks."""
    q, k, v = (normal(seed + i, 1, GRID.tokens, 2, 16) for i in range(3))
    kept = block_map(shares(q, k, GRID), GRID, 0.5)
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 4).softmax(-1)
    mass = (weights * ~keep_mask(kept, GRID)).sum(-1)
    error = (gather_attention(q, k, v, kept, GRID) - dense(q, k, v)).norm(dim=-1).transpose(1, 2)
    radius = (v - v.mean(1, keepdim=True)).norm(dim=-1).amax(1)[..., None]
    blocks = error > 1e-9  # text queries attend to everything
    return (dropped_mass_bound(mass, radius)[blocks] / error[blocks]).tolist()


def moved(seed: int) -> list[float]:
    """Scores of 16 keys rounded to bf16, around the largest one."""
    scores, values = normal(seed, 16, 16), normal(seed + 1, 16, 4)
    scores = scores - scores.amax(-1, keepdim=True)
    rounded = scores.bfloat16().double()
    error = ((rounded.softmax(-1) - scores.softmax(-1)) @ values).norm(dim=-1)
    radius = (values - values.mean(0)).norm(dim=-1).amax()
    return (moved_scores_bound((rounded - scores).abs().amax(-1), radius) / error).tolist()


def fillers(seed: int) -> list[float]:
    """48 keys of score 0 beside 1,040 others, smoothed."""
    q, k = (normal(seed + i, tokens, 64) for i, tokens in enumerate((64, 1040)))
    weights = torch.cat([q @ (k - k.mean(0)).T / 8, torch.zeros(64, 48)], 1).softmax(-1)
    return (filler_share_bound(48, 1040) / weights[:, 1040:].sum(-1)).tolist()


def sampled(seed: int) -> list[float]:
    """Mean of 16 draws from [0, 1] around its expectation, but for a chance of 5 %."""
    draws = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [hoeffding_margin(16, 0.05) / max(1e-3, abs(float(draws.mean()) - 0.5))]
