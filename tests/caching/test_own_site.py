"""A site that the package does not know: one dataclass, one class that stands on the model, one preset row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.contract import SITES, Installs, PolicyLike, Site, SiteState, register_site
from stack.caching.controller import CacheController
from stack.caching.methods import PRESETS
from stack.caching.policy import Policy
from stack.core.facts import Facts
from stack.core.installer import Installer
from stack.models.layout import Wiring
from stack.runtime.call import DenoiserCall, Interceptor, Proceed
from stack.runtime.target import Target

from ..conftest import PROMPT, picture, tiny_pipe

STEPS = 14


# ---- the site: 40 lines


@dataclass(frozen=True)
class RawOutputSite(Site):
    """What the denoiser returns."""

    name: ClassVar[str] = "raw-output"
    words: ClassVar[str] = "what the denoiser returns"
    calibrates_corrector: ClassVar[bool] = True
    divisible: ClassVar[bool] = True

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        return SiteState(predicted=facts.image_tokens * facts.latent[1])

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return RawOutput(controller)


class RawOutput:
    """Stands before the denoiser."""

    def __init__(self, controller: CacheController):
        self.controller = controller
        self.interceptors: tuple[Interceptor, ...] = (self,)

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        return 1

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        controller = self.controller
        controller.begin(call.latent)
        if all(controller.decide()):
            return (controller.predict("raw", controller.slots),)
        result = proceed(call)
        controller.store("raw", result[0], controller.slots)
        return result


# ---- end of the site


@pytest.fixture(autouse=True)
def row() -> Iterator[None]:
    register_site(RawOutputSite)
    PRESETS["raw"] = Policy.of(site="raw-output", gains=(1.0, 1.0), interval=3)
    yield
    del PRESETS["raw"], SITES["raw-output"]


def test_it_runs_and_the_plan_says_what_it_holds() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("raw")
    text = stack.explain()
    assert (
        "raw, 6 of 14 steps full (the first 3, then every 3 steps)" in text
        and "site: what the denoiser returns; " in text
    )
    with stack:
        picture(stack, STEPS)
        report = stack.report()
        kinds = "".join(step.kind[0] for step in report.steps)
        assert kinds == "fffccfccfccfcc" and report.passes["cache"]["bytes"] == 2 * 64 * 12 * 4


def test_it_equals_a_cache_of_what_the_denoiser_adds() -> None:
    """With order 0 the output is reused as it was: the pictures differ from those of reusing what was added."""
    made = []
    for method, options in (("raw", {"order": 0}), ("reuse", {"site": "whole-model", "interval": 3})):
        with Stack(tiny_pipe(), steps=STEPS).cache(method, **options) as stack:
            made.append(picture(stack, STEPS))
    assert not torch.equal(*made)


def test_a_cap_is_kept_or_refused_with_what_keeps_it() -> None:
    facts = Stack(tiny_pipe(), steps=STEPS).facts
    assert facts.image_tokens * facts.latent[1] * 4 * 2 == 6144
    Stack(tiny_pipe(), steps=STEPS).cache("raw", max_bytes=6144).explain()
    with pytest.raises(StackError, match="try: state_dtype='bfloat16' or order=0"):
        Stack(tiny_pipe(), steps=STEPS).cache("raw", max_bytes=6143).apply()


def test_a_corrector_goes_with_it_and_calibration_tries_one() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("raw", corrected=True)
    assert "full steps correct the error of the forecasts before them" in stack.explain()
    with stack:
        picture(stack, STEPS)
    stack = Stack(tiny_pipe(), steps=STEPS).cache("raw")
    tried: list[bool] = []
    calibrated = Cache.calibrated

    def noted(cache: Cache, candidate: Any, *args: Any) -> Cache:
        tried.append(candidate.corrected)
        return calibrated(cache, candidate, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cache, "calibrated", noted)
        found = stack.calibrate([PROMPT, "a green circle"], ["a red star"], full_steps=5, trials=8, progress=False)
    assert len(found.full_steps) == 5 and {True, False} == set(tried)


def test_options_name_it_in_recipes_and_errors() -> None:
    assert Cache("svd-published", site="raw-output").options() == {"method": "svd-published", "site": "raw-output"}
    with pytest.raises(StackError, match="'front' is an option of site 'output', site 'residual': this cache has site"):
        Cache("raw", front=1)
    with pytest.raises(StackError, match="gate 'prefix' cannot decide here: expected site 'output' or 'residual'"):
        Cache("raw", gate="prefix")
