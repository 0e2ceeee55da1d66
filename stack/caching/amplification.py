"""How much larger an error of the full steps may become in a forecast. Pure, from the schedule alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch

from .forecast import Forecast
from .predictor import Predictor


def amplification(
    forecast: Forecast, xs: Sequence[float], full: Collection[int], gain: Callable[[int], float] = lambda step: 1.0
) -> float:
    """Largest error of a forecast over the largest error of a full step's feature, 1 for plain reuse.

    A forecast is a sum of the full steps' features with known weights, so that errors of at most e make one of at most
    e times the sum of the weights' magnitudes; reached where the errors' signs follow the weights'. The weights are
    what the predictor makes of unit features. Principal part and residual have weights of their own, of which the
    larger counts. Assumes a split that stays as it is, and full steps that are not shrunk for their noise.

    Args:
        xs: coordinate of every step.
        full: steps that run in full, the first among them.
        gain: on all differences from a full step to the next.
    """
    parts = [Predictor(replace(forecast, gains=(factor, factor), level=0.0)) for factor in forecast.gains]
    features = iter(torch.eye(len(full), dtype=torch.float64)[:, None, None])
    most = 1.0
    for step, x in enumerate(xs):
        if step in full:
            feature = next(features)
            for part in parts:
                part.update(feature, x, gain(step))
        else:
            weights = torch.stack([part.predict(x).abs() for part in parts])
            most = max(most, float(weights.amax(0).sum()))
    return most
