"""Bounds of forecasts and of final samples over the truth, on typical trajectories."""

from __future__ import annotations

import math

import torch

from stack.bounds import (
    average_bound,
    average_lag,
    final_error_bound,
    forecast_bound,
    shrunken_error,
    shrunken_forecast_bound,
    stack_error_bound,
)
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis

from .weights import normal

GAP, WIDTH, STEPS = 0.1, 16, 30
NODES = (0.4, 0.5, 0.6)  # newest first: time runs down
AT = 0.35
FREQUENCY = 3.0


def wave(x: float, compute_mode: float) -> torch.Tensor:
    """A circle (1, 1, 2): its n-th derivative has norm FREQUENCY^n everywhere."""
    angle = FREQUENCY * x + compute_mode
    return torch.tensor([[[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)


def _forecast(seed: int, order: int, gain: float, noise: float) -> float:
    """Error of a forecast from noisy full steps at NODES."""
    predictor = Predictor(Forecast(order, (gain, gain)))
    for number, x in enumerate(reversed(NODES[: order + 1])):
        off = normal(seed * 10 + number, 1, 1, 2)
        predictor.update(wave(x, seed) + noise * off / off.norm(), x)
    return float((predictor.predict(AT) - wave(AT, seed)).norm())


def forecast(seed: int) -> list[float]:
    """Forecasts of orders 0 to 2 without noise."""
    orders = ((order, NODES[: order + 1]) for order in range(3))
    return [forecast_bound(n, AT, FREQUENCY ** len(n)) / _forecast(seed, order, 1.0, 0.0) for order, n in orders]


def noisy_forecast(seed: int) -> list[float]:
    """The same with 2 % noise in every full step."""
    orders = ((order, NODES[: order + 1]) for order in range(3))
    return [forecast_bound(n, AT, FREQUENCY ** len(n), 0.02) / _forecast(seed, order, 1.0, 0.02) for order, n in orders]


def shrunken_forecast(seed: int) -> list[float]:
    """Half of the first difference, 2 % noise."""
    bound = shrunken_forecast_bound(NODES[:2], AT, FREQUENCY, FREQUENCY**2, 0.5, 0.02)
    return [bound / _forecast(seed, 1, 0.5, 0.02)]


def _average(seed: int, weight: float, noise: float) -> tuple[float, float]:
    """(error of an EMA over a long walk around the circle, its slope)."""
    predictor, x = Predictor(Forecast(0, (1.0, 0.0), level=weight), ChannelBasis(1.0, found=torch.eye(2))), 0.0
    for number in range(60):
        x = -number * GAP / 10
        off = normal(seed * 100 + number, 1, 1, 2)
        predictor.update(wave(x, seed) + noise * off / off.norm(), x)
    return float((predictor.predict(x - 0.01) - wave(x - 0.01, seed)).norm()), FREQUENCY


def average(seed: int) -> list[float]:
    """EMA at weights 0.1 and 0.9, noise of 1 %."""
    errors = {weight: _average(seed, weight, 0.01) for weight in (0.1, 0.9)}
    return [average_bound(w, slope, GAP / 10, 0.01, 0.01) / error for w, (error, slope) in errors.items()]


def lag(seed: int) -> list[float]:
    """EMA at weight 0.5 of a slow walk: nearly a straight line."""
    error, slope = _average(seed, 0.5, 0.0)
    return [(average_lag(0.5, slope, GAP / 10) + slope * 0.01) / error]


def shrinkage(seed: int) -> list[float]:
    """Expected squared error of a shrunken difference over the measured one."""
    gain = 0.3 + 0.1 * (seed % 6)
    signal, noise = 2 * normal(seed, 100_000), normal(seed + 1, 100_000)
    return [shrunken_error(4, 1, gain) / float((gain * (signal + noise) - signal).square().mean())]


def _sampled(seed: int, passes: int) -> tuple[list[list[float]], list[float], float, float]:
    """Errors of passes on every step in directions of their own, gaps, Lipschitz constant, error of the final sample.

    The velocity is linear with the symmetric part of a random matrix; errors keep two thirds of their direction from
    step to step, as those of forecasts and of rounded weights do.
    """
    matrix = normal(seed, WIDTH, WIDTH)
    matrix = (matrix + matrix.mT) / 2
    matrix /= float(torch.linalg.matrix_norm(matrix, 2))
    gaps, x = [-1 / STEPS] * STEPS, normal(seed + 1, WIDTH)
    y, way = x.clone(), normal(seed + 2, passes, WIDTH)
    sizes: list[list[float]] = [[] for _ in range(passes)]
    for step, gap in enumerate(gaps):
        way = (2 * way + normal(seed * 1000 + step, passes, WIDTH)) / 5**0.5
        for number, error in enumerate(way):
            sizes[number].append(0.02 * float(error.norm()))
        x, y = x + gap * (matrix @ x), y + gap * (matrix @ y + 0.02 * way.sum(0))
    return sizes, gaps, 1.0, float((x - y).norm())


def final(seed: int) -> list[float]:
    """One pass through 30 Euler steps."""
    (sizes,), gaps, lipschitz, error = _sampled(seed, 1)
    return [final_error_bound(sizes, gaps, lipschitz) / error]


def stacked(seed: int) -> list[float]:
    """Three passes through 30 Euler steps."""
    sizes, gaps, lipschitz, error = _sampled(seed, 3)
    return [stack_error_bound(sizes, gaps, lipschitz) / error]
