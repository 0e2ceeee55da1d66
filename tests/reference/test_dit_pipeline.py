from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from stack.loading import load
from stack.reference.classes import NULL
from stack.reference.dit_pipeline import ShapesDiTPipeline
from training.shapes_dit import TRANSFORMER, new_scheduler

SIZE = 16


def tiny_dit() -> ShapesDiTPipeline:
    """One block, two heads of 64, 64 image tokens."""
    torch.manual_seed(0)
    small = {"num_layers": 1, "num_attention_heads": 2, "sample_size": SIZE}
    pipe = ShapesDiTPipeline(DiTTransformer2DModel(**{**TRANSFORMER, **small}).eval(), new_scheduler(), size=SIZE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: Any, labels: Any, seeds: list[int], **kwargs: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(labels, generator=generators, **{"num_inference_steps": 6, "output_type": "latent", **kwargs}).images


def listen(pipe: ShapesDiTPipeline) -> list[dict[str, torch.Tensor]]:
    """What the denoiser is asked, call by call."""
    calls: list[dict[str, torch.Tensor]] = []

    def hook(_: Any, args: tuple[torch.Tensor], kwargs: dict[str, torch.Tensor]) -> None:
        calls.append({"pictures": args[0].clone(), **kwargs})

    pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def test_both_branches_run_in_one_call_cond_first() -> None:
    pipe = tiny_dit()
    calls = listen(pipe)
    pictures(pipe, ["a red ring", 7], [1, 2], guidance_scale=2.0)
    assert len(calls) == 6
    red_ring = pipe.get_label_ids("a red ring")
    for call in calls:
        assert call["class_labels"].tolist() == [*red_ring, 7, NULL, NULL]
        assert torch.equal(*call["pictures"].chunk(2))
    assert [call["timestep"][0].item() for call in calls] == [999, 832, 666, 499, 332, 166]


def test_without_guidance_there_is_no_second_branch() -> None:
    pipe = tiny_dit()
    calls = listen(pipe)
    pictures(pipe, 7, [1], guidance_scale=1.0)
    assert {tuple(call["class_labels"].tolist()) for call in calls} == {(7,)}


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_a_perfect_denoiser_gives_its_picture_whatever_the_steps(steps: int, scale: float) -> None:
    pipe = tiny_dit()
    known = torch.rand(NULL + 1, 3, SIZE, SIZE) * 2 - 1

    def forward(noisy: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> Any:
        # v = sqrt(a) noise - sqrt(1 - a) picture, with the noise that leads from the label's picture to this one.
        a = pipe.scheduler.alphas_cumprod[timestep][:, None, None, None]
        noise = (noisy - a.sqrt() * known[class_labels]) / (1 - a).sqrt()
        return type("Output", (), {"sample": a.sqrt() * noise - (1 - a).sqrt() * known[class_labels]})

    pipe.transformer.forward = forward
    expected = known[NULL] + scale * (known[[3, 20]] - known[NULL])
    found = pictures(pipe, [3, 20], [1, 2], num_inference_steps=steps, guidance_scale=scale)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_batched_equals_one_by_one() -> None:
    pipe = tiny_dit()
    both = pictures(pipe, ["a red ring", "a cyan star"], [1, 2])
    alone = torch.cat([pictures(pipe, "a red ring", [1]), pictures(pipe, "a cyan star", [2])])
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_saved_and_loaded_it_draws_the_same(tmp_path: Path) -> None:
    pipe = tiny_dit()
    pipe.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype=torch.float32, device="cpu")
    assert type(again) is ShapesDiTPipeline and again.config.size == SIZE
    assert torch.equal(pictures(again, 4, [1]), pictures(pipe, 4, [1]))


def test_output_types_and_tuples() -> None:
    pipe = tiny_dit()
    (image,) = pipe("a green circle", num_inference_steps=2).images
    assert image.size == (SIZE, SIZE)
    (tensor,) = pipe(["a green circle"], num_inference_steps=2, output_type="pt", return_dict=False)
    assert tensor.shape == (1, 3, SIZE, SIZE) and 0 <= tensor.min() < tensor.max() <= 1


@pytest.mark.parametrize("label", [30, -1, [4, 31]])
def test_numbers_that_name_no_class(label: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown class -?\d+: expected a number from 0 to 29"):
        tiny_dit()(label, num_inference_steps=2)
