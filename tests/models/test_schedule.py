from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from stack.core.errors import StackError
from stack.distill.schedules import AdapterSchedule
from stack.models.schedule import shift_of, timetable_of, uniform


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("steps", [4, 28, 50])
def test_flux_timetables_have_uniform_unshifted_time(tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)  # FLUX.1-dev's own ranges
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=calculate_shift(tokens))
    table = timetable_of(scheduler, tokens).schedule
    assert len(table.sigmas) == steps
    times = [table.time(sigma) for sigma in table.sigmas]
    assert times == pytest.approx([1 - i / steps for i in range(steps)], abs=1e-5)


def test_a_static_shift_is_read_as_it_is() -> None:
    assert shift_of({"shift": 3.0, "use_dynamic_shifting": False}, 1024) == 3.0
    assert shift_of({}, 1024) == 1.0


@pytest.mark.parametrize("shift", [0.0, -1.0, 1e-300, 1e300])
def test_a_shift_without_noise_levels_is_refused(shift: float) -> None:
    for made in (uniform, lambda steps, s: AdapterSchedule("dmd", (1000.0, 500.0), s)):
        with pytest.raises(StackError, match=r"shift: expected a number in \[0\.001, 1000\]"):
            made(8, shift)
