"""A plan is made for the call at hand: its steps, its scheduler, and the model as it is then."""

from __future__ import annotations

import threading
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from peft import LoraConfig

from stack import Stack
from stack.caching.contract import SITES
from stack.core.errors import StackError
from stack.models.schedule import uniform

from .conftest import inputs, picture, tiny_denoiser, tiny_pipe
from .pipelines.build import STEPS, flux

PAIRS = ((50, 8), (8, 28), (8, 4), (20, 14), (14, 11), (4, 50))
METHODS = {"svd": {}, "fora": {}, "predictor-corrector": {}}
UNIPC = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def kinds_of_a_fresh_stack(pipe: Any) -> str:
    twin = tiny_pipe()
    twin.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with Stack(twin, steps=12).cache("svd") as fresh:
        picture(fresh, 12)
        return kinds(fresh)


def kinds(stack: Stack) -> str:
    return "".join(record.kind[0] for record in stack.report().steps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("planned", "called"), PAIRS)
def test_a_call_of_other_steps_is_as_if_planned_for_it(planned: int, called: int, method: str) -> None:
    pipe = tiny_pipe()
    with Stack(pipe, steps=called).cache(method) as fresh:
        wanted, wanted_kinds = picture(fresh, called), kinds(fresh)
    with Stack(pipe, steps=planned).cache(method) as stack:
        for run in (stack, pipe):  # through the stack, and around it
            assert torch.equal(picture(run, called), wanted)
            assert kinds(stack) == wanted_kinds
        picture(stack, planned)
        assert torch.equal(picture(stack, called), wanted)
        assert stack.plan.facts_after.steps == planned  # calls that say nothing are as planned


def test_weights_stay_rounded_where_only_the_steps_change() -> None:
    stack = Stack(tiny_pipe(), steps=14).quantize("int8", min_features=32).cache("svd").apply()
    before = stack.denoiser.transformer_blocks[0].attn.to_q
    picture(stack, 8)
    assert stack.denoiser.transformer_blocks[0].attn.to_q is before and type(before).__name__ == "Int8Linear"


SET_BY_USERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"interval": 1}, "ffffffff"),
    ({"interval": 3, "warmup": 1}, "fccfccfc"),
    ({"interval": 7}, "fffccccc"),  # as in the preset
    ({"full_steps": (0, 1, 4), "steps": 8}, "ffccfccc"),
    ({"max_error": 1e-6}, "ffffffff"),
    ({"spread": "by-noise", "interval": 2}, "fcfcfcff"),
    ({"count": 3}, "fccfccfc"),
)


@pytest.mark.parametrize(("options", "pattern"), SET_BY_USERS)
def test_what_the_user_sets_holds_on_few_steps(options: dict[str, Any], pattern: str) -> None:
    pipe = tiny_pipe()
    plain = picture(pipe, 8)
    stack = Stack(pipe, steps=8).cache("svd", **options)
    drawn = picture(stack, 8)
    assert kinds(stack) == pattern
    assert torch.equal(drawn, plain) or "c" in pattern
    assert "as asked on a schedule of 8 steps" in stack.explain()


def test_what_few_steps_leave_unused_is_named() -> None:
    stack = Stack(tiny_pipe(), steps=8).cache("svd", order=2, site="x0")
    text = stack.explain()
    assert "5 of 8 steps run in full: 0 2 4 6 7; not used: order (rule few-steps)" in text
    assert "site: " + SITES["x0"].words in text, "a site whose full steps can be corrected stays"
    picture(stack, 8)
    assert kinds(stack) == "fcfcfcff"


# ---- whose call is it?


def test_a_second_pipeline_with_its_own_sampler_runs_in_full_and_is_told_of_once() -> None:
    pipe, other = tiny_pipe(), tiny_pipe()
    other.transformer, other.scheduler = pipe.transformer, UniPCMultistepScheduler(**UNIPC)
    plain = picture(other, 14)
    stack = Stack(pipe, steps=12).cache("svd")
    picture(stack, 12)
    assert torch.equal(picture(other, 14), plain)
    assert kinds(stack) == "f" * 14
    assert sum("rule step-unknown" in text for text in stack.report().warnings) == 1
    wanted = kinds_of_a_fresh_stack(pipe)
    picture(pipe, 12)
    assert kinds(stack) == wanted, "nothing of the other's call is gone on from"


@torch.no_grad()
def test_a_bare_loop_of_another_length_is_reported_whole() -> None:
    stack = Stack(tiny_denoiser(), steps=50, shift=3.0).cache("svd")
    for sigma in uniform(28, 3.0).sigmas:
        stack(**inputs(sigma))
    report = stack.report()
    assert kinds(stack) == "f" * 28
    assert "other noise levels than the 50 steps of shift 3" in " ".join(report.warnings)


@torch.no_grad()
def test_samples_at_different_timesteps_run_in_full() -> None:
    denoiser = tiny_denoiser()
    calls = [{**inputs(s, batch=3), "timestep": torch.tensor([s, s / 2, s])} for s in uniform(14).sigmas]
    plain = [denoiser(**call, return_dict=False)[0] for call in calls]
    stack = Stack(denoiser, steps=14).cache("svd")
    drawn = [stack(**call, return_dict=False)[0] for call in calls]
    assert all(map(torch.equal, drawn, plain))
    assert kinds(stack) == "f" * 14
    assert "samples are at different timesteps" in " ".join(stack.report().warnings)


@torch.no_grad()
def test_timesteps_rounded_to_bf16_are_the_steps_they_were() -> None:
    steps = {}
    for dtype in (torch.float32, torch.bfloat16):
        stack = Stack(tiny_denoiser(), steps=50, shift=3.0).cache("svd")
        for sigma in uniform(50, 3.0).sigmas:
            call = inputs(sigma)
            stack(**{**call, "timestep": call["timestep"].to(dtype)})
        steps[dtype] = [record.step for record in stack.report().steps], kinds(stack)
    assert steps[torch.bfloat16] == steps[torch.float32] and steps[torch.float32][0] == list(range(50))


# ---- facts are read late


def test_a_scheduler_exchanged_after_apply_is_the_one_planned_for() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).cache("svd", corrected=True).apply()
    picture(stack, 14)
    for scheduler in (
        UniPCMultistepScheduler(**UNIPC),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        tiny_pipe().scheduler,
    ):
        pipe.scheduler = scheduler
        drawn, told = picture(stack, 14), stack.report()
        stack.undo()
        with Stack(pipe, steps=14).cache("svd", corrected=True) as fresh:
            assert torch.equal(picture(fresh, 14), drawn)
            assert kinds(fresh) == "".join(record.kind[0] for record in told.steps)
        picture(stack, 14)


@pytest.mark.parametrize("applied", [False, True])
def test_a_cache_of_diffusers_put_on_later_is_seen(applied: bool) -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).cache("svd")
    if applied:
        picture(stack)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    with pytest.raises(StackError, match="cache of diffusers"):
        picture(stack)
    stack.undo()
    pipe.transformer.disable_cache()
    assert torch.equal(picture(pipe), picture(tiny_pipe()))


def test_a_lora_loaded_before_the_first_call_is_seen() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).quantize("int8", min_features=32)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="x")
    with pytest.raises(StackError, match="unmerged LoRA"):
        picture(stack)


def test_a_model_cast_after_apply_is_rounded_anew() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).quantize("int8", min_features=32).cache("svd")
    picture(stack)
    pipe.transformer.to(torch.bfloat16)
    drawn = picture(stack)
    assert "planned for anew: dtype" in " ".join(stack.report().warnings)
    stack.undo()
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.bfloat16}
    twin = tiny_pipe()
    twin.transformer.to(torch.bfloat16)
    assert torch.equal(picture(Stack(twin, steps=14).quantize("int8", min_features=32).cache("svd")), drawn)


def test_a_transformer_replaced_before_apply_is_the_one_that_is_used() -> None:
    pipe, other = tiny_pipe(), tiny_denoiser()
    with torch.no_grad():
        other.proj_out.weight.mul_(1.5)
    stack = Stack(pipe, steps=14).cache("svd")
    pipe.transformer = other
    picture(stack)
    assert stack.denoiser is other and kinds(stack).count("f") == 4


def test_a_transformer_replaced_after_apply_is_refused_and_reported() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).cache("svd").apply()
    pipe.transformer = tiny_denoiser()
    with pytest.raises(StackError, match=r"pipe\.transformer is no longer"):
        picture(stack)
    picture(pipe)
    assert "pipe.transformer is no longer" in " ".join(stack.report().warnings)


def test_a_denoiser_called_past_the_stack_is_reported() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=14).cache("svd")
    picture(stack)
    pipe.transformer.forward = MethodType(type(pipe.transformer).forward, pipe.transformer)
    picture(stack)
    report = stack.report()
    assert report.steps == [] and "no call of the denoiser came through the stack" in " ".join(report.warnings)


def test_two_threads_that_alternate_step_by_step_share_no_state() -> None:
    first = flux(torch.float32)
    second = flux(torch.float32)
    second.pipe.transformer = first.pipe.transformer
    turns = threading.Semaphore(1), threading.Semaphore(0)
    made: dict[int, torch.Tensor] = {}

    def draw(which: int, pipe: Any) -> None:
        def passes_on(_: Any, step: int, *given: Any) -> Any:
            turns[1 - which].release()
            if step < STEPS - 1:
                turns[which].acquire()
            return given[-1]

        turns[which].acquire()
        seeded = {"generator": torch.Generator().manual_seed(which), "num_inference_steps": STEPS, "return_dict": False}
        made[which] = pipe(**first.given, **seeded, callback_on_step_end=passes_on)[0]

    with Stack(first.pipe).cache("svd", interval=3, warmup=1) as stack:
        alone = first.call(generator=torch.Generator().manual_seed(0))
        threads = [threading.Thread(target=draw, args=one) for one in enumerate((first.pipe, second.pipe))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(made[0], alone)
        assert any("calls at other timesteps" in line for line in stack.report().warnings)
    plain = first.call(generator=torch.Generator().manual_seed(1))
    assert 0 < (made[1] - plain).norm() < (made[1] - alone).norm()
