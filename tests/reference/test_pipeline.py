from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stack.loading import load
from stack.reference.pipeline import image_ids, patchify, unpatchify
from training.flow import shift_at

from ..conftest import picture, tiny_pipe


def test_patches_round_trip() -> None:
    pictures = torch.randn(2, 3, 16, 24)
    tokens = patchify(pictures)
    assert tokens.shape == (2, 8 * 12, 12)
    assert torch.equal(unpatchify(tokens, 16, 24), pictures)


def test_positions_span_the_same_canvas_at_every_resolution() -> None:
    small, large = image_ids(8, 8), image_ids(32, 32)
    assert small[:, 1:].mean().item() == large[:, 1:].mean().item() == 16.0
    # The centre of a coarse patch is the mean of the sixteen fine ones it covers.
    fine = large.reshape(32, 32, 3)[:4, :4].reshape(-1, 3).mean(0)
    assert torch.equal(small[0], fine)


@pytest.mark.parametrize(("size", "shift"), [(16, 1.0), (64, math.exp(1.1))])
def test_the_schedule_is_shifted_by_the_number_of_tokens(size: int, shift: float) -> None:
    pipe = tiny_pipe(size)
    picture(pipe, 10)
    sigma = pipe.scheduler.sigmas[5].item()  # unshifted time 1/2
    assert sigma == pytest.approx(shift / (1 + shift), abs=1e-5)
    assert shift_at((size // 2) ** 2) == pytest.approx(shift)


def test_saved_and_loaded_it_draws_the_same(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype=torch.float32, device="cpu")
    assert type(again) is type(pipe) and again.config.size == pipe.config.size
    torch.testing.assert_close(picture(again, 6), picture(pipe, 6), atol=1e-5, rtol=0)


def test_batches_prompts_and_images_per_prompt() -> None:
    pipe = tiny_pipe()
    two = pipe(["a green circle", "a cyan star"], num_images_per_prompt=2, num_inference_steps=2, output_type="pt")
    assert two.images.shape == (4, 3, 16, 16)
    assert pipe("a green circle", num_inference_steps=2).images[0].size == (16, 16)
