"""Every block on its own."""

from __future__ import annotations

import torch

from stack.caching.cache import Cache
from stack.caching.sites.per_module import PerBlock
from stack.core.installer import Installer
from stack.models.schedule import uniform

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from ..wirings import FLUX
from .rig import STEPS, controller_of


@torch.no_grad()
def test_every_block_and_stream_has_a_basis_of_its_own() -> None:
    """Text and image span different subspaces: what one basis keeps of its own feature, no other keeps."""
    denoiser, clock = tiny_denoiser(), clock_of(uniform(STEPS))
    controller = controller_of(Cache("svd-published-blocks", warmup=3).policy, clock)
    PerBlock(controller).install(denoiser, FLUX, Installer())
    for sigma in clock.timetable.schedule.sigmas[:3]:
        given = inputs(sigma)
        controller.journal.begin(advance(clock, sigma, tuple(given["hidden_states"].shape)))
        denoiser(**given)
    predictors = controller.slots[0].predictors
    assert sorted(predictors) == ["0/image", "0/text", "1/image", "1/text"]
    splits = {key: predictor.split for key, predictor in predictors.items() if predictor.split}
    assert len({id(split) for split in splits.values()}) == 4
    for key, predictor in predictors.items():
        kept = {other: float(split.principal(predictor.last).norm()) for other, split in splits.items()}
        assert max(kept, key=kept.__getitem__) == key
