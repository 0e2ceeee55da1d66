"""Nothing of a request is in the next one, whoever makes it and however the one before ended."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from stack import Stack
from stack.reference.pipeline import ShapesFluxPipeline
from stack.reference.shapes_flux import new_scheduler

from ..conftest import picture, tiny_pipe

STEPS = 14


def build(pipe: Any, method: str = "svd") -> Stack:
    options = {"interval": 5, "warmup": 2}
    return Stack(pipe, steps=STEPS).quantize("int8", min_features=64).cache(method, **options)


def fails_at(call: int, error: BaseException) -> Any:
    """A hook that raises once."""
    calls = iter(range(1, 10**6))

    def hook(*_: Any) -> None:
        if next(calls) == call:
            raise error

    return hook


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["svd", "taylorseer", "duca", "predictor-corrector"])
def test_what_breaks_off_in_a_block_leaves_neither_state_nor_memory(method: str, error: BaseException) -> None:
    pipe = tiny_pipe()
    with build(pipe, method) as stack:
        expected = picture(stack, STEPS)
        handle = pipe.transformer.single_transformer_blocks[0].norm.register_forward_pre_hook(fails_at(3, error))
        with pytest.raises(type(error)):
            picture(stack, STEPS, prompt="a green circle")
        handle.remove()
        figures = stack.report().passes["cache"]
        assert figures["bytes"] == figures["table_bytes"] == 0
        assert not any(module.shared.holds for module in pipe.transformer.modules() if "packed" in vars(module))
        assert torch.equal(picture(stack, STEPS), expected)


def test_a_caller_who_breaks_off_between_two_steps_leaves_no_memory_either() -> None:
    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with build(tiny_pipe()) as stack:
        with pytest.raises(KeyboardInterrupt):
            stack("a green circle", num_inference_steps=STEPS, callback_on_step_end=stop)
        assert stack.report().cache_bytes == 0


def beside(pipe: Any) -> ShapesFluxPipeline:
    """A second pipeline on the same model, with a scheduler of its own."""
    other = ShapesFluxPipeline(new_scheduler(), pipe.transformer, pipe.prompt_encoder, size=16)
    other.set_progress_bar_config(disable=True)
    return other


def test_a_second_pipeline_waits_for_the_request_of_the_first() -> None:
    """Called from another thread in the middle of it: both draw what they draw one after the other."""
    pipe = tiny_pipe()
    second, drawn = beside(pipe), []
    with build(pipe) as stack:
        expected = picture(stack, STEPS), picture(second, STEPS, "a green circle", seed=5)
        threads = []

        def draw() -> None:
            drawn.append(picture(second, STEPS, "a green circle", seed=5))

        def start(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 6:
                threads.append(threading.Thread(target=draw))
                threads[0].start()
            return {}

        generator = [torch.Generator().manual_seed(1)]
        first = stack(
            ["a red ring left of a blue star"],
            num_inference_steps=STEPS,
            generator=generator,
            output_type="pt",
            callback_on_step_end=start,
        ).images
        threads[0].join()
        assert torch.equal(first, expected[0]) and torch.equal(drawn[0], expected[1])


@pytest.mark.parametrize("steps", [STEPS, 20])
def test_a_request_in_the_middle_of_another_pipelines(steps: int) -> None:
    """Called from the second one's callback: the first is served as ever, the second goes on with a full step."""
    pipe = tiny_pipe()
    second, inner = beside(pipe), []
    with build(pipe) as stack:
        expected = picture(stack, STEPS)

        def serve(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 7:
                inner.append(picture(stack, STEPS))
            return {}

        second("a green circle", num_inference_steps=steps, callback_on_step_end=serve, output_type="latent")
        kinds = [record.kind for record in stack.report().steps]
        assert torch.equal(inner[0], expected)
        # Another number of steps than the stack's pipeline made last: no call continues the one before.
        assert kinds[0] == "full" and len(kinds) == steps - 8


@pytest.mark.parametrize("method", ["svd", "taylorseer"])
def test_threads_on_one_stack_draw_what_they_draw_alone(method: str) -> None:
    with build(tiny_pipe(), method) as stack:
        jobs = [(steps, seed) for steps in (STEPS, 15) for seed in (1, 7)]
        expected = {job: picture(stack, job[0], seed=job[1]) for job in jobs}
        drawn: dict[tuple[int, int], torch.Tensor] = {}

        def work(job: tuple[int, int]) -> None:
            drawn[job] = picture(stack, job[0], seed=job[1])

        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(drawn[job], expected[job]) for job in jobs)


def test_another_resolution_in_the_middle_of_a_loop_starts_a_request() -> None:
    pipe = tiny_pipe()
    with build(pipe) as stack:
        expected = {size: draw(stack, size) for size in (16, 24)}
        for size in (24, 16, 16, 24):
            assert torch.equal(draw(stack, size), expected[size])
        assert stack.report().passes["cache"]["dropped"] == 0


def draw(stack: Stack, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return stack(
        "a red ring", height=size, width=size, num_inference_steps=STEPS, generator=generator, output_type="pt"
    ).images
