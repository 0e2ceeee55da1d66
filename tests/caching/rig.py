"""Sites on small models, called step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from stack.caching.cache import Cache
from stack.caching.controller import CacheController
from stack.caching.policy import Policy
from stack.caching.sites.token_selector import TokenSelector
from stack.caching.sites.tokenwise import TokenSite, Tokenwise
from stack.core.installer import Installer
from stack.models.schedule import uniform
from stack.runtime.call import DenoiserCall, InterceptorChain
from stack.runtime.report import Journal
from stack.runtime.stamp import Conditions
from stack.runtime.step_clock import MAIN, Clock

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from ..wirings import FLUX

STEPS = 14
IMAGE, TEXT, WIDTH = 64, 16, 128
FF, FF_TEXT, JOINT = (
    "transformer_blocks.0.ff",
    "transformer_blocks.0.ff_context",
    "single_transformer_blocks.0.proj_out",
)


def controller_of(policy: Policy, clock: Clock, weights: Callable[[], int] = lambda: 0) -> CacheController:
    """A controller as the cache pass makes it."""
    return CacheController(
        clock=clock,
        journal=Journal(),
        schedule_for=policy.schedule_for,
        new_predictor=lambda key, placement: policy.new_predictor(placement),
        conditions=lambda: Conditions(weights=weights()),
        new_gate=policy.new_gate if policy.gate else None,
        coordinate=policy.forecast.coordinate,
    )


class Rig:
    """ToCa as published, with a full first step only, unless told otherwise: `call(step)` makes one denoiser call.

    Attributes:
        head: the hidden state that entered the head in the last call.
        grid: of the image tokens.
        weights: version of the weights.
    """

    def __init__(self, halves: bool = False, **options: Any):
        self.policy: Policy = Cache("toca-published", **{"budget": "even", "warmup": 1, **options}).policy
        self.denoiser, self.clock, self.weights = tiny_denoiser(), clock_of(uniform(STEPS)), 0
        self.controller = controller_of(self.policy, self.clock, lambda: self.weights)
        self.grid: tuple[int, ...] = (8, 8)
        site, schedule = self.policy.site, self.policy.schedule
        assert isinstance(site, TokenSite)
        selector = TokenSelector(self.controller, site, schedule.interval, 64, halves, grid=lambda: self.grid)
        self.chain, install = InterceptorChain(), Installer()
        installed = Tokenwise(self.controller, partial(site.kinds, self.policy), selector)
        installed.install(self.denoiser, FLUX, install)
        self.chain.add(install, *installed.interceptors)
        self.head: torch.Tensor | None = None
        self.denoiser.norm_out.register_forward_pre_hook(self._see)

    def _see(self, module: Any, args: Any) -> None:
        self.head = args[0]

    @torch.no_grad()
    def call(self, step: int, branch: str = MAIN, batch: int = 1, sigma: float | None = None) -> torch.Tensor:
        at = self.clock.timetable.schedule.sigmas[step]
        given = inputs(at if sigma is None else sigma, batch=batch)
        if branch == "uncond":
            given["encoder_hidden_states"] = -given["encoder_hidden_states"]
        self.clock.branch = branch
        self.controller.journal.begin(advance(self.clock, at, tuple(given["hidden_states"].shape)))
        return self.chain.run(DenoiserCall(partial(self.denoiser, **given), given)).sample

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        return self.controller.slots[0].kept

    @property
    def kind(self) -> str:
        """What the last call was."""
        return self.controller.journal.entries[-1].kind

    def snapshot(self) -> dict[str, torch.Tensor]:
        return {key: tensor.clone() for key, tensor in self.kept.items()}


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Tokens of the first sample that differ."""
    return (before != after)[0].any(-1).nonzero().flatten().tolist()
