"""EasyCache: the whole denoiser is answered from outside, and its gate reads raw latents."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.policy import Policy
from stack.caching.sites.whole_model import WholeModel
from stack.core.installer import Installer
from stack.models.layout import Wiring
from stack.models.schedule import uniform
from stack.runtime.call import DenoiserCall, InterceptorChain
from stack.runtime.step_clock import MAIN

from ..clocks import advance, clock_of
from ..conftest import PROMPT, inputs, picture, tiny_denoiser, tiny_pipe
from ..models.test_dit import draw, tiny
from ..wirings import DIT, FLUX
from .rig import controller_of

STEPS = 14
PROMPTS = [PROMPT, "a green circle", "a cyan star on a white background"]


class Rig:
    """A stand-in model of one number per pixel, out = factor * in + 1, called with latents that the test chooses.

    Attributes:
        ran: batch sizes of the model's calls.
    """

    def __init__(self, wiring: Wiring = DIT, steps: int = 8, factor: float = 2.0, **options: Any):
        self.policy: Policy = Cache("easycache-published", **{"warmup": 2, **options}).policy
        self.clock, self.factor, self.ran = clock_of(uniform(steps)), factor, list[int]()
        self.controller = controller_of(self.policy, self.clock)
        self.journal = self.controller.journal
        self.chain = InterceptorChain()
        site = WholeModel(self.controller)
        site.install(nn.Identity(), wiring, Installer())
        self.chain.add(Installer(), site)

    def _forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.ran.append(len(hidden_states))
        return (self.factor * hidden_states + 1,)

    def call(self, step: int, *values: float, branch: str = MAIN, **more: Any) -> list[float]:
        """One call with a sample of each value; the samples that come out."""
        latent = torch.stack([torch.full((1, 2, 3, 3), value) for value in values])  # 5-D, as of a video
        self.clock.branch = branch
        self.journal.begin(advance(self.clock, self.clock.timetable.schedule.sigmas[step], tuple(latent.shape)))
        given = {"hidden_states": latent, "return_dict": False, **more}
        out = self.chain.run(DenoiserCall(partial(self._forward, **given), given))[0]
        assert out.shape == latent.shape
        return [float(sample.flatten()[0]) for sample in out]

    @property
    def kinds(self) -> str:
        return "".join(entry.kind[0] for entry in self.journal.entries)


def test_the_sum_grows_as_published() -> None:
    """in 10, 9: out 21, 19, so k = 2. A step of 1 adds 2 * 1 / 19 = 0.105: 0.105 and 0.211 are below 0.3, 0.316 not."""
    rig = Rig(threshold=0.3)
    outs = [rig.call(step, 10.0 - step)[0] for step in range(8)]
    assert rig.kinds == "ffccfcff"
    # Cached steps add out - in of the last full step: 19 - 9 = 10, then 13 - 6 = 7. Twice 2 / 13 is too much.
    assert outs == [21, 19, 8 + 10, 7 + 10, 13, 5 + 7, 9, 7]


def test_only_samples_whose_step_is_full_run() -> None:
    """The first sample stands still and is cached from step 2 on, the second runs again at step 4."""
    rig = Rig(threshold=0.3)
    for step in range(6):
        rig.call(step, 10.0, 10.0 - step)
    assert rig.ran == [2, 2, 1]


def test_the_slope_is_of_the_last_two_full_steps() -> None:
    """The model's slope falls from 2 to 0.2, seen at the full step 4: (20.2... - 19) / (6 - 9)."""
    rig = Rig(threshold=0.3)
    for step in range(4):
        rig.call(step, 10.0 - step)
    rig.factor = 0.2
    rig.call(4, 6.0)
    out, before = 0.2 * 6 + 1, 2 * 9 + 1
    gate = rig.controller.slots[0].gate
    assert gate is not None and vars(gate)["slope"] == pytest.approx((before - out) / (9 - 6))
    # 5.6 / 2.2 per step of 1: far above the threshold.
    rig.call(5, 5.0)
    assert rig.kinds == "ffccff"


@pytest.mark.parametrize(
    ("options", "kinds"), [({}, "fffffccf"), ({"longest": 1}, "fffffcff"), ({"threshold": 0.0}, "f" * 8)]
)
def test_warm_up_last_step_and_longest_run(options: dict[str, Any], kinds: str) -> None:
    rig = Rig(**{"threshold": 9.0, "warmup": 5, **options})
    for step in range(8):
        rig.call(step, 10.0 - step)
    assert rig.kinds == kinds


def test_samples_run_on_their_own_where_arguments_can_be_split() -> None:
    """The first sample moves by 1 per step, the second by 0.01; only the first has to run at step 4."""
    rig, alone = Rig(threshold=0.3), [Rig(threshold=0.3), Rig(threshold=0.3)]
    for step in range(6):
        values = (10.0 - step, 10 - 0.01 * step)
        assert rig.call(step, *values) == [single.call(step, v)[0] for single, v in zip(alone, values, strict=True)]
    assert rig.kinds == "ffccpc" and rig.ran == [2, 2, 1]
    assert [single.kinds for single in alone] == ["ffccfc", "ffcccc"]


@pytest.mark.parametrize("reason", ["no names", "a collection"])
def test_a_batch_that_cannot_be_split_is_cached_where_all_agree(reason: str) -> None:
    rig = (
        Rig(FLUX, threshold=0.3)
        if reason == "a collection"
        else Rig(Wiring(**{**vars(DIT), "inputs": ()}), threshold=0.3)
    )
    more = (
        {"joint_attention_kwargs": {"ip_adapter_image_embeds": [torch.ones(2, 1)]}} if reason == "a collection" else {}
    )
    for step in range(6):
        rig.call(step, 10.0 - step, 10 - 0.01 * step, **more)
    assert rig.kinds == "ffccfc" and rig.ran == [2, 2, 2]


def test_branches_have_their_own_sums() -> None:
    rig = Rig(threshold=0.3)
    for step in range(6):
        rig.call(step, 10.0 - step, branch="cond")
        rig.call(step, 10 - 0.01 * step, branch="uncond")
    assert rig.kinds[::2] == "ffccfc" and rig.kinds[1::2] == "ffcccc"


def test_another_request_starts_afresh() -> None:
    rig = Rig(threshold=9.0)
    for step in (0, 1, 2, 0, 1, 2):
        rig.call(step, 10.0 - step)
    assert rig.kinds == "ffc" and len(rig.ran) == 4 and rig.controller.dropped == 0


def test_a_caller_that_writes_into_its_latent_changes_nothing() -> None:
    rig, given = Rig(threshold=0.3), torch.full((1, 1, 3, 3), 10.0)
    advance(rig.clock, 1.0, (1, 1, 3, 3))
    assert rig.clock.context is not None
    rig.journal.begin(rig.clock.context)
    out = rig.chain.run(DenoiserCall(partial(rig._forward, hidden_states=given), {"hidden_states": given}))[0]
    kept = rig.controller.slots[0].kept
    given.zero_(), out.zero_()
    assert float(kept["in"].mean()) == float(kept["before"].mean()) == 10 and float(kept["out"].mean()) == 21


@pytest.mark.parametrize("make", [tiny_pipe, tiny])
def test_threshold_zero_is_the_model_itself(make: Any) -> None:
    pipe = make()
    labels: Any = PROMPT if make is tiny_pipe else [3]
    before = picture(pipe, STEPS, prompt=labels)
    with Stack(pipe, steps=STEPS).cache("easycache-published", threshold=0.0) as stack:
        assert torch.equal(picture(stack, STEPS, prompt=labels), before)
        assert "0 of 14 steps cached" in str(stack.report())
    assert torch.equal(picture(pipe, STEPS, prompt=labels), before)


def test_nothing_of_the_model_runs_on_a_cached_step() -> None:
    pipe, ran = tiny_pipe(), list[str]()
    for name in ("x_embedder", "time_text_embed", "proj_out"):
        pipe.transformer.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    stack = Stack(pipe, steps=STEPS).cache("easycache-published", threshold=0.2)
    picture(stack, STEPS)
    full = stack.report().full_steps
    assert 5 < full < STEPS and len(ran) == 3 * full


def test_batched_equals_one_by_one() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("easycache-published", threshold=0.15)
    together = picture(stack, STEPS, prompt=PROMPTS)
    assert {step.kind for step in stack.report().steps} == {"full", "partial", "cached"}
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i : i + 1], picture(stack, STEPS, prompt=prompt, seed=1 + i))


def test_guidance_in_the_batch_is_decided_branch_by_branch() -> None:
    stack = Stack(tiny(), steps=STEPS).cache("easycache-published", threshold=0.2)
    together = draw(stack)
    assert "".join(step.kind[0] for step in stack.report().steps) == "fffffcfcpppppf"
    for i, label in enumerate((3, 17)):
        torch.testing.assert_close(draw(stack, (label,)), together[i : i + 1], atol=2e-4, rtol=0)


def test_a_fixed_schedule_works_here_too() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("easycache-published", gate="", interval=4, warmup=2)
    picture(stack, STEPS)
    assert "".join(step.kind[0] for step in stack.report().steps) == "ffcccfcccfcccf"


def test_models_that_return_another_shape_are_refused_while_planning() -> None:
    config = {k: v for k, v in tiny().transformer.config.items() if not k.startswith("_")}
    stack = Stack(DiTTransformer2DModel(**{**config, "out_channels": 9})).cache("easycache-published")
    with pytest.raises(StackError, match=r"got 36 for 12 .*; try: site='output'"):
        stack.apply()
    assert not stack.applied


def test_a_bare_denoiser_may_return_a_tuple() -> None:
    denoiser: FluxTransformer2DModel = tiny_denoiser()
    with torch.no_grad(), Stack(denoiser, steps=STEPS).cache("easycache-published", threshold=9.0, warmup=2) as stack:
        for sigma in (1.0, 1 - 1 / STEPS, 1 - 2 / STEPS):
            named, plain = stack(**inputs(sigma)), None
        stack.denoiser(**inputs(1.0))
        for sigma in (1.0, 1 - 1 / STEPS, 1 - 2 / STEPS):
            plain = stack(**inputs(sigma), return_dict=False)
        assert isinstance(plain, tuple) and torch.equal(plain[0], named.sample)
