"""What the controller does by the clock: forecasts over real time, drafts taken back."""

from __future__ import annotations

import pytest
import torch

from stack import Stack
from stack.caching.policy import Policy
from stack.models.schedule import SigmaSchedule

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from .rig import controller_of

UNEVEN = SigmaSchedule((1.0, 0.95, 0.8, 0.45, 0.4, 0.1), shift=3.0)


@pytest.mark.parametrize("name", ["time", "sigma"])
def test_a_forecast_follows_the_coordinate_over_uneven_steps(name: str) -> None:
    """Features on a straight line in the coordinate are met exactly; counted in steps they are missed by far."""
    clock = clock_of(UNEVEN)
    controller = controller_of(Policy.of(warmup=3, interval=9, gains=(1.0, 1.0), coordinate=name), clock)
    tokens = torch.ones(1, 4, 8, dtype=torch.float64)
    for sigma in UNEVEN.sigmas:
        context = advance(clock, sigma, tuple(tokens.shape))
        controller.journal.begin(context)
        controller.begin(tokens)
        feature = tokens * (2 + 5 * (context.time if name == "time" else sigma))
        if controller.decide() == [False]:
            controller.store("image", feature, controller.slots)
        else:
            torch.testing.assert_close(controller.predict("image", controller.slots), feature, rtol=1e-6, atol=1e-6)
    assert [entry.kind for entry in controller.journal.entries] == ["full"] * 3 + ["cached"] * 3


@torch.no_grad()
def test_a_draft_that_fails_its_check_is_taken_back() -> None:
    """No draft is good enough: every step is as in the model itself."""
    denoiser, steps = tiny_denoiser(), 14
    given = [inputs(1 - step / steps) | {"hidden_states": inputs()["hidden_states"] * (1 + step)} for step in range(6)]
    with Stack(denoiser, steps=steps).cache("speca-published", accept=(0.0, 1.0, 0.0)) as stack:
        got = [stack(**each)[0] for each in given]
        assert stack.report().passes["cache"]["rolled_back"] == 3
        assert stack.report().full_steps == 6
    for each, mine in zip(given, got, strict=True):
        assert torch.equal(mine, denoiser(**each)[0])


@pytest.mark.parametrize("bridges", [False, True])
def test_a_jump_between_ways_of_computing_is_no_error_of_the_forecast(bridges: bool) -> None:
    """It is extrapolated as any change is, or not at all; and it says nothing of the schedule."""
    told = {}
    for compute_modes in ((), (lambda context: context.step < 2,)):
        clock = clock_of(UNEVEN)
        controller = controller_of(Policy.of(warmup=3, interval=9, gains=(1.0, 1.0)), clock)
        controller.bridges = bridges
        tokens = torch.ones(1, 4, 8, dtype=torch.float64)
        for step, sigma in enumerate(UNEVEN.sigmas[:4]):
            controller.journal.begin(advance(clock, sigma, tuple(tokens.shape), compute_modes))
            controller.begin(tokens)
            if controller.decide() == [False]:
                controller.store("image", tokens * (1 if step < 2 else 9), controller.slots)
        errors = [entry.error for entry in controller.journal.entries]
        told[len(compute_modes)] = (float(controller.predict("image", controller.slots).mean()), errors[2])
    assert told[0][0] > 18 and told[1][0] == (told[0][0] if bridges else 9.0)
    assert told[0][1] == pytest.approx(8 / 9) and told[1][1] is None
