"""More in a call than noise and text: what is cached is right, and what cannot be is refused before any change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack, StackError
from stack.models.timestep import of_noisy_tokens

from .build import STEPS, Whole, chroma, denoiser, flow, flux, krea2, qwen, sd3, wan, z_image
from .special import klein_kv, ltx2, modular_flux, wan_from_a_picture


def kinds_of(report: Any) -> str:
    return "".join(record.kind[0] for record in report.steps)


def video_and_sound(whole: Whole, run: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    video = whole.call(run)
    given = {**whole.given, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7)}
    both = (run or whole.pipe)(**given, output_type="latent", return_dict=False)
    assert torch.equal(both[0], video)
    return both[0], both[1]


@pytest.mark.parametrize("method", ["svd", "fora", "predictor-corrector", "easycache", "first-block"])
def test_video_and_sound_are_both_forecast_on_cached_steps(method: str) -> None:
    """LTX-2 returns a video and its sound."""
    whole = ltx2()
    plain = video_and_sound(whole)
    gate = {"threshold": 1e6} if method in ("easycache", "first-block") else {"interval": 3, "warmup": 2}
    with Stack(whole.pipe, steps=STEPS).cache(method, **gate) as stack:
        made = video_and_sound(whole, stack)
        kinds = kinds_of(stack.report())
    assert kinds.count("c") + kinds.count("p") >= STEPS // 2
    for cached, full in zip(made, plain, strict=True):
        assert 1e-4 < (cached - full).norm() / full.norm() < 0.8
    again = video_and_sound(whole)
    assert all(map(torch.equal, again, plain))


@pytest.mark.parametrize("method", ["svd", "fora", "predictor-corrector"])
def test_video_and_sound_are_those_of_the_model_where_every_step_is_full(method: str) -> None:
    whole = ltx2()
    plain = video_and_sound(whole)
    with Stack(whole.pipe, steps=STEPS).cache(method, interval=1) as stack:
        assert all(map(torch.equal, video_and_sound(whole, stack), plain))


def test_what_needs_no_single_output_runs_on_video_with_sound() -> None:
    whole = ltx2()
    plain = whole.call()
    with Stack(whole.pipe, steps=STEPS).quantize("int8", min_features=8) as stack:
        error = (whole.call(stack) - plain).norm() / plain.norm()
    assert 0 < error < 0.05
    assert torch.equal(whole.call(), plain)


def test_a_longer_first_step_leaves_no_state_to_those_after_it() -> None:
    """The step that takes the picture in is a request of its own: the cache begins behind it."""
    whole = klein_kv()
    with Stack(whole.pipe, steps=STEPS).cache("reuse", count=3) as stack:
        first = whole.call(stack)
        report = stack.report()
        assert torch.equal(whole.call(stack), first)
    assert kinds_of(report)[:2] == "ff" and "c" in kinds_of(report)
    assert any("a step does not follow the one before it" in text for text in report.warnings)


def test_the_one_time_of_the_noisy_tokens() -> None:
    assert of_noisy_tokens(torch.tensor([[0.0, 7.0, 7.0], [0.0, 7.0, 0.0]])) == 7.0
    for times in ([[0.0, 7.0, 3.5]], [[0.0, 7.0], [0.0, 6.0]], [[7.0], [6.0]], [7.0, 6.0]):
        assert of_noisy_tokens(torch.tensor(times)) is None


def test_tokens_at_times_that_are_neither_clean_nor_the_steps_run_in_full() -> None:
    """A video that is made frame after frame has as many times as frames."""
    whole = wan_from_a_picture()

    def staggered(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        times = given["timestep"].clone()
        times[:, -1] *= 0.5
        return args, {**given, "timestep": times}

    handle = whole.pipe.transformer.register_forward_pre_hook(staggered, with_kwargs=True)
    plain = whole.call()
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        assert torch.equal(whole.call(stack), plain)
        report = stack.report()
    handle.remove()
    assert set(kinds_of(report)) == {"f"}
    assert any("calls whose samples are at different timesteps" in text for text in report.warnings)


BATCHED: dict[str, Callable[[], Whole]] = {
    "flux": flux, "qwen": qwen, "krea2": krea2, "chroma": chroma, "sd3": sd3, "wan": wan, "wan22": partial(wan, 2),
    "z-image": z_image,
}  # fmt: skip


def other_prompt(given: dict[str, Any]) -> dict[str, Any]:
    """The same call for another prompt; masks and sizes stay."""
    turned = {}
    for name, value in given.items():
        if isinstance(value, list):
            turned[name] = [-tensor for tensor in value]
        else:
            turned[name] = -value if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    return turned


def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One call for both prompts."""
    joined = {}
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            joined[name] = torch.cat([value, other[name]])
        else:
            joined[name] = value + other[name] if isinstance(value, list) else value
    return joined


@pytest.mark.parametrize("options", [("svd", {"interval": 3}), ("first-block", {"threshold": 0.2})])
@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_what_its_samples_are_one_by_one(name: str, options: tuple[str, dict[str, Any]]) -> None:
    """Under a schedule, and under a gate that decides sample by sample."""
    whole = BATCHED[name]()
    method, choices = options
    one, other = whole.given, other_prompt(whole.given)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    with Stack(whole.pipe, steps=STEPS).cache(method, **choices) as stack:
        batch = whole.call(stack, **together(one, other), generator=generators)
        alone = [whole.call(stack, seed=seed, **given) for seed, given in ((7, one), (8, other))]
    for mine, single in zip(batch, alone, strict=True):
        assert torch.allclose(mine, single[0], atol=1e-3, rtol=1e-3)


def test_a_modular_pipeline_without_a_scheduler_is_refused() -> None:
    from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep

    pipe = diffusers.FluxModularPipeline(blocks=FluxCoreDenoiseStep())
    with pytest.raises(StackError, match="the transformer of this FluxModularPipeline is None"):
        Stack(pipe)
    pipe.update_components(transformer=denoiser("FluxTransformer2DModel"))
    with pytest.raises(StackError, match="this FluxModularPipeline has no scheduler"):
        Stack(pipe)
    pipe.update_components(scheduler=flow())
    assert Stack(pipe).denoiser is pipe.transformer


def test_a_pipeline_without_a_scheduler_is_refused() -> None:
    pipe = flux().pipe
    pipe.scheduler = None
    with pytest.raises(StackError, match="this FluxPipeline has no scheduler, which says which step a call is: set"):
        Stack(pipe)


def test_measurements_on_a_modular_pipeline_are_refused() -> None:
    whole = modular_flux()
    with pytest.raises(StackError, match="cannot measure on a FluxModularPipeline: expected a DiffusionPipeline"):
        Stack(whole.pipe, steps=STEPS).cache("svd").calibrate(["a", "b"], ["c"], progress=False)
