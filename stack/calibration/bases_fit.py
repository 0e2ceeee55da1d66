"""Finding bases offline: run the stack with every step full, and read the subspace off the sum of all features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..caching.bases import Bases
from ..caching.cache import Cache
from ..caching.forecast import Forecast
from ..caching.predictor import Predictor
from ..caching.splits import ChannelSplit
from ..compat.calibrated_for import conditions
from ..compat.subspace import rank_by_energy
from ..core.installer import Installer
from ..core.passes import Applied
from ..core.progress import ProgressLine
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from ..runtime.target import Target
from .observe import Observe


@dataclass
class GramSum:
    """Sum of F^T F over features F (B, N, D): their principal subspace follows from it. Takes the place of a split.

    Attributes:
        sum: (D, D) float64; None before the first feature.
    """

    sum: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.sum is None else self.sum.nbytes

    def fit(self, feature: torch.Tensor, noise: float = 0.0) -> None:
        """Every sample counts the same, whatever its size."""
        rows = feature.double() / feature.double().square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-30)
        gram = (rows.mT @ rows).sum(0)
        self.sum = gram if self.sum is None else self.sum + gram

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        return feature

    def denoised(self, difference: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return difference, torch.zeros_like(difference)

    def basis(self, energy: float) -> tuple[torch.Tensor, tuple[float, float]]:
        """The leading eigenvectors that hold this share of the energy, (D, k) float32, and their spectrum.

        The spectrum is the largest eigenvalue and the gap behind the k-th, over the sum of all.
        """
        assert self.sum is not None
        values, vectors = torch.linalg.eigh(self.sum)
        values = values.flip(0).clamp_min(0)
        rank = rank_by_energy(values, energy)
        shares = [*(values / values.sum()).tolist(), 0.0]
        return vectors.flip(1)[:, :rank].float().contiguous(), (shares[0], shares[rank - 1] - shares[rank])


def gathering(cache: Cache, sums: dict[str, GramSum]) -> Observe:
    """The cache's sites with every step full, each feature summed up."""

    def put_on(target: Target, install: Installer) -> Applied:
        controller = cache.controller(target)
        controller.new_predictor = lambda key, placement: Predictor(
            Forecast(1, (1.0, 0.0)), sums.setdefault(key, GramSum())
        )
        cache.install_site(controller, target, install)
        install.on_rollback(controller.reset)
        return Applied("every step runs in full; features are summed up", reset=controller.reset)

    return Observe(put_on)


def fit_bases(
    stack: StackLike, cache: Cache, prompts: Sequence[str], seed: int, calls: PipelineCalls, bar: ProgressLine
) -> Bases:
    """Bases of everything the cache predicts, from uncached runs of the prompts; rank by the cache's energy."""
    split = cache.policy.split
    assert isinstance(split, ChannelSplit)
    gathered: dict[str, GramSum] = {}
    stack.replace(gathering(cache.uncalibrated(interval=1, bases=None), gathered))
    for _ in calls.per_prompt(stack, prompts, seed, stack.plan.facts_after.asked, bar, "prompt"):
        pass
    found = {key: sums.basis(split.energy) for key, sums in gathered.items()}
    facts = stack.facts
    under = conditions(stack.plan.facts_after)
    vectors = {key: basis for key, (basis, _) in found.items()}
    spectra = {key: spectrum for key, (_, spectrum) in found.items()}
    return Bases(facts.family, facts.blocks, facts.width, vectors, spectra, made_under=under)
