"""The DiT family: every preset runs on it, with guidance in one batch, and comes off again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from stack import Stack
from stack.models.sampler import linear_form
from stack.reference.dit_pipeline import ShapesDiTPipeline
from training.shapes_dit import TRANSFORMER, new_scheduler

from ..caching.fitted import PLAIN

STEPS = 14
FITTED = [name for name in PLAIN if name.startswith("fastcache") or name == "magcache"]  # ask for a fitting run first


def tiny() -> ShapesDiTPipeline:
    torch.manual_seed(0)
    config = {**TRANSFORMER, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8}
    denoiser = DiTTransformer2DModel(**config).eval()
    for block in denoiser.transformer_blocks:  # DiT's own start: gates at zero would hide what a cache does
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
    torch.nn.init.normal_(denoiser.proj_out_1.weight, std=0.2)
    pipe = ShapesDiTPipeline(denoiser, new_scheduler(), size=8)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(run: object, labels: tuple[int, ...] = (3, 17)) -> torch.Tensor:
    assert callable(run)
    generators = [torch.Generator().manual_seed(label) for label in labels]
    return run(list(labels), num_inference_steps=STEPS, generator=generators, output_type="latent").images


@pytest.mark.parametrize("method", [name for name in PLAIN if name not in FITTED])
def test_every_preset_runs_and_comes_off(method: str) -> None:
    pipe = tiny()
    before = draw(pipe)
    stack = Stack(pipe, steps=STEPS).cache(method)
    during = draw(stack)
    kinds = [step.kind for step in stack.report().steps]
    assert len(kinds) == STEPS and kinds[0] == "full"
    assert (kinds.count("full") == STEPS) == torch.equal(during, before)
    stack.undo()
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize(
    "method",
    ["svd", "taylorseer", "svd-published-blocks", "teacache", "speca-published", "dbcache-taylor", "easycache"],
)
def test_batched_equals_one_by_one(method: str) -> None:
    """Gates decide for every sample, cond and uncond apart, so a batch may run some of its rows only."""
    stack = Stack(tiny(), steps=STEPS).cache(method)
    together = draw(stack)
    for i, label in enumerate((3, 17)):
        torch.testing.assert_close(draw(stack, (label,)), together[i : i + 1], atol=2e-4, rtol=0)


def test_the_sampler_is_the_models_own() -> None:
    pipe, inputs, outputs = tiny(), [], []

    def note(module: Any, args: Any, given: dict[str, Any], out: Any) -> None:
        inputs.append(args[0] if args else given["hidden_states"])
        outputs.append(out.sample)

    pipe.transformer.register_forward_hook(note, with_kwargs=True)
    final = draw(pipe)
    # The picture is the sum of the estimates that the recorded outputs amount to; nothing of the first noise is left.
    form, state = linear_form(pipe.scheduler), torch.zeros_like(final)
    for estimate, weight, x, output in zip(form.estimates, form.weights[-1], inputs, outputs, strict=True):
        cond, uncond = output.chunk(2)
        state += float(weight) * (estimate.c * x[:2] + estimate.d * (uncond + 2.5 * (cond - uncond)))
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-4)
