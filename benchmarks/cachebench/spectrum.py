"""Spectrum's forecast (CVPR 2026), as a row of this benchmark only: a ridge fit of Chebyshev polynomials over the whole
past of a feature. Rebuilt from the paper's description; its schedule that grows is not rebuilt, full steps are even.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from stack.caching.contract import Installs, PolicyLike
from stack.caching.controller import CacheController
from stack.caching.placement import Placement
from stack.caching.predictor import Predictor
from stack.caching.sites.block_range import OutputSite
from stack.runtime.target import Target


class ChebyshevFit(Predictor):
    """Keeps the feature of every full step of a request; a forecast is a weighted sum of them."""

    def __init__(self, policy: PolicyLike, placement: Placement, degree: int, ridge: float):
        super().__init__(policy.forecast, placement=placement)
        self.degree, self.ridge = degree, ridge
        self.past: list[tuple[float, torch.Tensor]] = []

    def update(
        self, feature: torch.Tensor, x: float, gain: float = 1.0, noise: float = 0.0, compute_mode: Hashable = ()
    ) -> None:
        super().update(feature, x, gain, noise, compute_mode)
        self.past.append((x, feature))

    def predict(self, x: float) -> torch.Tensor:
        nodes = np.array([node for node, _ in self.past])
        factors = fit_weights(nodes, x, self.degree, self.ridge)
        out = torch.zeros_like(self.past[0][1], dtype=torch.float32)
        for factor, (_, feature) in zip(factors.tolist(), self.past, strict=True):
            out.add_(feature, alpha=factor)
        return out.to(self.past[0][1].dtype)


def fit_weights(nodes: np.ndarray, x: float, degree: int, ridge: float) -> np.ndarray:
    """Weights of the values at nodes (n,) in the fit's value at x; times in [0, 1].

    phi(x) (Phi^T Phi + ridge I)^-1 Phi^T with Chebyshev polynomials up to `degree` of 2 x - 1.
    """
    phi = np.polynomial.chebyshev.chebvander(2 * nodes - 1, degree)
    at = np.polynomial.chebyshev.chebvander(np.array([2 * x - 1]), degree)[0]
    return at @ np.linalg.solve(phi.T @ phi + ridge * np.eye(degree + 1), phi.T)


@dataclass(frozen=True)
class SpectrumSite(OutputSite):
    """The last hidden state, forecast by a fit of degree `degree` with weight `ridge` on its coefficients.

    The paper's degree is 4 and its weight 0.1 as far as is known here; both are screened like any rival's settings.
    """

    name: ClassVar[str] = "spectrum"
    degree: int = 4
    ridge: float = 0.1

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        controller.new_predictor = lambda key, placement: ChebyshevFit(policy, placement, self.degree, self.ridge)
        return super().build(controller, target, policy)
