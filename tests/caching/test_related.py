"""Relational Feature Caching: increments as long as their inputs tell, steps decided by the first input's forecast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.policy import Policy
from stack.caching.sites.relational import RelationalModules
from stack.core.installer import Installer
from stack.models.layout import CachedModule, Wiring
from stack.models.schedule import uniform

from ..clocks import advance, clock_of
from ..conftest import PROMPT, picture, tiny_pipe
from ..models.test_dit import draw, tiny
from .rig import controller_of

STEPS = 14
PROMPTS = [PROMPT, "a green circle", "a cyan star on a white background"]


class Triple(nn.Module):
    factor = 3.0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.factor * hidden_states


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Triple()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.attn(hidden_states)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


WIRING = Wiring(
    sensitive={},
    grid=lambda denoiser, given: (),
    family="triple",
    classes=("Model",),
    block_lists=("blocks",),
    streams={"image": "hidden_states"},
    output_stream="image",
    linears={},
    modules={"blocks": (CachedModule("attn", "attention"),)},
    modulation=lambda block, given: given["hidden_states"],
    batched=(),
)


class Rig:
    """One block that adds three times its input, called with tokens that the test chooses; 2 tokens of width 2."""

    def __init__(self, **options: Any):
        self.policy: Policy = Cache("rfc-published", **{"order": 1, "warmup": 2, **options}).policy
        self.model, self.clock = Model(), clock_of(uniform(12))
        self.controller = controller_of(self.policy, self.clock)
        self.journal = self.controller.journal
        RelationalModules(self.controller).install(self.model, WIRING, Installer())

    def call(self, step: int, *values: float) -> list[float]:
        x = torch.stack([torch.full((2, 2), value) for value in values])
        self.journal.begin(advance(self.clock, self.clock.timetable.schedule.sigmas[step], tuple(x.shape)))
        return [float(sample[0, 0]) for sample in self.model(x)]

    @property
    def kinds(self) -> str:
        return "".join(entry.kind[0] for entry in self.journal.entries)


def test_the_input_tells_how_far_the_output_has_moved() -> None:
    """Inputs 10, 9 and then 7: Taylor expects 27 - 3 = 24 of the module, its input tells 27 - 3 * 2 = 21."""
    rig = Rig(threshold=9.0)
    assert [rig.call(step, x)[0] for step, x in enumerate((10.0, 9.0, 7.0, 5.5))] == [40, 36, 7 + 21, 5.5 + 16.5]
    assert rig.kinds == "ffcc"


def test_the_direction_is_the_forecasts() -> None:
    """An input that turns back is not followed: |I - I(t)| has no sign."""
    rig = Rig(threshold=9.0)
    assert [rig.call(step, x)[0] for step, x in enumerate((10.0, 9.0, 9.5))] == [40, 36, 9.5 + 27 - 1.5]


def test_what_did_not_move_is_reused() -> None:
    rig = Rig(threshold=9.0)
    assert [rig.call(step, x)[0] for step, x in enumerate((10.0, 10.0, 8.0))] == [40, 40, 8 + 30]


def test_an_output_that_moved_without_its_input_tells_nothing() -> None:
    """30 and 40 from an input of 10: what follows is reused, not a step of infinite length."""
    rig = Rig(threshold=9.0)
    rig.call(0, 10.0)
    rig.model.blocks[0].attn.factor = 4.0
    assert [rig.call(1, 10.0)[0], rig.call(2, 8.0)[0]] == [50, 8 + 40]


def test_the_sum_of_first_errors_decides() -> None:
    """Inputs forecast 8 and 7 where 7 and 5 come: errors 1 / 7 and 2 / 5, in sum 0.543."""
    inputs = (10.0, 9.0, 7.0, 5.0)
    for threshold, kinds in ((0.14, "fff"), (0.15, "ffcf"), (0.54, "ffcf"), (0.55, "ffcc")):
        rig = Rig(threshold=threshold)
        for step, x in enumerate(inputs[: len(kinds)]):
            rig.call(step, x)
        assert rig.kinds == kinds


def test_samples_run_on_their_own() -> None:
    """The first sample leaves its line at step 3, the second never does; both are as they would be alone."""
    rig, alone = Rig(threshold=0.15), [Rig(threshold=0.15), Rig(threshold=0.15)]
    for step, values in enumerate(((10.0, 8.0), (9.0, 7.5), (8.0, 7.0), (5.0, 6.5), (4.0, 6.0))):
        assert rig.call(step, *values) == [single.call(step, v)[0] for single, v in zip(alone, values, strict=True)]
    assert rig.kinds == "ffcpp" and [single.kinds for single in alone] == ["ffcff", "ffccc"]


@pytest.mark.parametrize("threshold", [0.22, 1.0])
def test_batched_equals_one_by_one(threshold: float) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("rfc-published", threshold=threshold)
    together = picture(stack, STEPS, prompt=PROMPTS)
    assert {step.kind for step in stack.report().steps} == {"full", "partial", "cached"}
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i : i + 1], picture(stack, STEPS, prompt=prompt, seed=1 + i))


def test_batched_equals_one_by_one_with_guidance_in_the_batch() -> None:
    stack = Stack(tiny(), steps=STEPS).cache("rfc-published", threshold=0.25)
    together = draw(stack)
    assert {step.kind for step in stack.report().steps} >= {"full", "partial"}
    for i, label in enumerate((3, 17)):
        torch.testing.assert_close(draw(stack, (label,)), together[i : i + 1], atol=2e-4, rtol=0)


def test_on_a_fixed_schedule_every_sample_has_its_own_length() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("rfc-published", gate="", interval=4, warmup=2)
    together = picture(stack, STEPS, prompt=PROMPTS)
    assert "".join(step.kind[0] for step in stack.report().steps) == "ffcccfcccfcccf"
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i : i + 1], picture(stack, STEPS, prompt=prompt, seed=1 + i))


def test_threshold_zero_is_the_model_itself() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    with Stack(pipe, steps=STEPS).cache("rfc-published", threshold=0.0) as stack:
        assert torch.equal(picture(stack, STEPS), before)
    assert torch.equal(picture(pipe, STEPS), before)


def test_gates_stand_where_they_can_decide() -> None:
    for method, gate in (
        ("rfc-published", "prefix"),
        ("easycache-published", "polynomial"),
        ("first-block", "sum"),
        ("svd-published-blocks", "sum"),
    ):
        with pytest.raises(StackError, match="cannot decide here: expected site"):
            Cache(method, gate=gate)
