from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stack.loading import load
from stack.reference.pipeline import ShapesFluxPipeline
from stack.reference.video_pipeline import ShapesVideoPipeline

from ..models.test_hunyuan_video import FRAMES, SIZE, TEXT, tiny

PROMPT = "a red ring moving left"


def frames(pipe: Any, prompt: Any = PROMPT, seeds: tuple[int, ...] = (1,), **kwargs: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, **{"num_inference_steps": 4, "output_type": "pt", **kwargs}).frames


def test_every_output_type_is_the_same_video() -> None:
    pipe = tiny()
    video = frames(pipe)
    assert video.shape == (1, FRAMES, 3, SIZE, SIZE) and video.min() >= 0 and video.max() <= 1
    latents = frames(pipe, output_type="latent")
    assert latents.shape == (1, 3, FRAMES, SIZE, SIZE)
    torch.testing.assert_close((latents.clamp(-1, 1) + 1).transpose(1, 2) / 2, video, atol=1e-6, rtol=0)
    arrays = frames(pipe, output_type="np")
    np.testing.assert_allclose(arrays, video.movedim(2, -1).numpy(), atol=1e-6)
    (images,) = frames(pipe, output_type="pil")
    assert len(images) == FRAMES and isinstance(images[0], Image.Image) and images[0].size == (SIZE, SIZE)
    assert torch.equal(pipe(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=4,
                            output_type="pt", return_dict=False)[0], video)  # fmt: skip


def test_a_perfect_denoiser_gives_its_video_and_is_asked_at_shifted_times() -> None:
    pipe, known, asked = tiny(), torch.rand(1, 3, FRAMES, SIZE, SIZE) * 2 - 1, []

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        asked.append(timestep.item())
        assert given["encoder_attention_mask"].tolist() == [[1.0] * TEXT]
        return ((hidden_states - known) / (timestep.reshape(-1, 1, 1, 1, 1) / 1000),)

    pipe.transformer.forward = forward
    torch.testing.assert_close(frames(pipe, output_type="latent"), known, atol=1e-4, rtol=0)
    sigmas = [1.0, 0.75, 0.5, 0.25]
    assert asked == pytest.approx([3000 * s / (1 + 2 * s) for s in sigmas], rel=1e-4)


def test_saved_and_loaded_it_draws_the_same(tmp_path: Path) -> None:
    pipe = tiny()
    pipe.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype=torch.float32, device="cpu")
    assert type(again) is ShapesVideoPipeline and (again.config.size, again.config.frames) == (SIZE, FRAMES)
    assert again.scheduler.config.shift == 3.0
    torch.testing.assert_close(frames(again), frames(pipe), atol=1e-5, rtol=0)


def test_batches_prompts_and_videos_per_prompt() -> None:
    pipe = tiny()
    prompts = [PROMPT, "a cyan star moving up on white"]
    four = frames(pipe, prompts, (1, 2, 3, 4), num_videos_per_prompt=2)
    assert four.shape[0] == 4
    torch.testing.assert_close(frames(pipe, prompts[1], (3,))[0], four[2], atol=1e-5, rtol=0)
    assert not torch.allclose(frames(pipe, prompts[1], (1,)), frames(pipe, seeds=(1,)), atol=1e-3)
    assert frames(pipe, num_frames=2, height=32, width=16).shape == (1, 2, 3, 32, 16)


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="moving DIRECTION"):
        tiny()("a red ring left of a blue star", num_inference_steps=1)


def test_the_shipped_prompt_encoder_still_loads() -> None:
    pipe = load("shapes-flux", dtype=torch.float32, device="cpu")
    assert isinstance(pipe, ShapesFluxPipeline) and pipe.prompt_encoder.words.weight.shape == (29, 64)
