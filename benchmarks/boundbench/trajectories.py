"""Bounds of forecasts and of final samples over the truth, on typical trajectories."""

from __future__ import annotations

import math

import torch

from stack.bounds import final_error_bound
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis

from .documented import average_bound, forecast_bound, shrunken_error, shrunken_forecast_bound
from .weights import normal

GAP, WIDTH, STEPS = 0.1, 16, 30
NODES = (0.4, 0.5, 0.6)  # newest first: time runs down
AT = 0.35
FREQUENCY = 3.0


def wave(x: float, phase: float) -> torch.Tensor:
    """A circle (1, 1, 2): its n-th derivative has norm FREQUENCY^n everywhere."""
    angle = FREQUENCY * x + phase
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


def _average(seed: int, weight: float, noise: float) -> float:
    """Error of an EMA over a long walk around the circle."""
    predictor, x = Predictor(Forecast(0, (1.0, 0.0), level=weight), ChannelBasis(1.0, found=torch.eye(2))), 0.0
    for number in range(60):
        x = -number * GAP / 10
        off = normal(seed * 100 + number, 1, 1, 2)
        predictor.update(wave(x, seed) + noise * off / off.norm(), x)
    return float((predictor.predict(x - 0.01) - wave(x - 0.01, seed)).norm())


def average(seed: int) -> list[float]:
    """EMA at weights 0.1 and 0.9, noise of 1 %."""
    return [average_bound(w, FREQUENCY, GAP / 10, 0.01, 0.01) / _average(seed, w, 0.01) for w in (0.1, 0.9)]


def shrinkage(seed: int) -> list[float]:
    """Expected squared error of a shrunken difference over the measured one."""
    gain = 0.3 + 0.1 * (seed % 6)
    signal, noise = 2 * normal(seed, 100_000), normal(seed + 1, 100_000)
    return [shrunken_error(4, 1, gain) / float((gain * (signal + noise) - signal).square().mean())]


def final(seed: int) -> list[float]:
    """30 Euler steps of a linear velocity, the symmetric part of a random matrix.

    Errors keep two thirds of their direction from step to step, as those of forecasts and of rounded weights do.
    """
    matrix = normal(seed, WIDTH, WIDTH)
    matrix = (matrix + matrix.mT) / 2
    matrix /= float(torch.linalg.matrix_norm(matrix, 2))
    gaps, x = [-1 / STEPS] * STEPS, normal(seed + 1, WIDTH)
    y, way, sizes = x.clone(), normal(seed + 2, WIDTH), []
    for step, gap in enumerate(gaps):
        way = (2 * way + normal(seed * 1000 + step, WIDTH)) / 5**0.5
        sizes.append(0.02 * float(way.norm()))
        x, y = x + gap * (matrix @ x), y + gap * (matrix @ y + 0.02 * way)
    return [final_error_bound(sizes, gaps, 1.0) / float((x - y).norm())]
