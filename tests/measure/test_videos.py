"""A comparison of videos: frames count as pictures, and what is asked for is read from whole clips."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stack.comparison.compare import compare
from stack.comparison.files import save_outcome
from stack.comparison.grid import to_image
from stack.measure.flops import counting
from stack.measure.metrics import picture_warnings, psnr, ssim
from stack.recipe import Recipe
from stack.reference.captions import captions

from ..models.test_hunyuan_video import FRAMES, SIZE, TEXT, VIDEO, tiny
from ..wirings import HUNYUAN_VIDEO

STEPS = 14
CACHED = Recipe("cached", "", "shapes-video", STEPS, {"cache": {"interval": 4, "warmup": 2}})


def test_metrics_count_frames_as_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    videos, other = torch.rand(2, 2, 3, 3, 16, 16, generator=generator)
    flat, flat_other = videos.flatten(0, 1), other.flatten(0, 1)
    assert psnr(videos, other) == pytest.approx(psnr(flat, flat_other))
    assert ssim(videos, other) == pytest.approx(ssim(flat, flat_other)) and ssim(videos, videos) == pytest.approx(1)
    videos[1, 2, 0, 0, 0] = math.nan
    assert picture_warnings(videos, other, True) == ["1 of 2 pictures hold NaN or infinity"]


def test_the_grid_shows_four_frames_from_first_to_last() -> None:
    video = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 16, 16)
    image = to_image(video, 64)
    corners = np.asarray(image)[16::32, 16::32, 0].flatten().tolist()
    assert image.size == (64, 64) and corners == [0, round(255 * 2 / 7), round(255 * 5 / 7), 255]


def test_compare_measures_a_video_model(tmp_path: Path) -> None:
    outcome = compare(tiny(), [CACHED], name="shapes-video", prompts=2, steps=STEPS, compile_base=False)
    rows = {row["name"]: row for row in outcome.record["rows"]}
    assert outcome.pictures["all"].shape == (2, FRAMES, 3, SIZE, SIZE)
    assert rows["base"]["psnr_db"] == 99 and 20 < rows["all"]["psnr_db"] < 90
    assert 0 < rows["all"]["ssim"] < 1
    assert rows["all"]["full_steps"] == 5 and rows["fewer-steps"]["steps"] >= 5
    assert {"fewer-steps", "fewer-steps-multistep"} <= set(rows)
    # Four questions about each of two clips: whatever an untrained model draws, an eighth of them is the unit.
    assert all(row["accuracy"] * 8 == round(row["accuracy"] * 8) for row in rows.values())
    assert outcome.record["prompts"] == captions(2, 0, "shapes-video")
    assert outcome.record["prompts"][0] == "a red ring moving left on a white background"
    assert (tmp_path / "grid.png") in save_outcome(outcome, tmp_path)


def test_a_pipeline_of_another_name_is_asked_in_its_own_language() -> None:
    outcome = compare(tiny(), [CACHED], name="models/mine", prompts=1, steps=STEPS, compile_base=False)
    assert outcome.record["prompts"] == captions(1, 0, "shapes-video")
    assert all(row["accuracy"] is None for row in outcome.record["rows"])


def test_work_inside_and_outside_of_the_blocks() -> None:
    pipe = tiny()
    with counting(pipe.transformer, HUNYUAN_VIDEO.blocks(pipe.transformer)) as work:
        pipe("a red ring moving left", num_inference_steps=1)
    d, joint = 64 * 64, VIDEO + TEXT
    # Double block: modulation of both streams, then q k v o and an MLP of three widths on every token.
    double, single = 2 * 6 * d + joint * (4 + 6) * d, 3 * d + joint * (3 + 3 + 4) * d
    assert work().linears == 2 * double + 2 * single
    assert work().attention == 4 * 2 * joint * joint * 64
    # The refiner of the words has an attention too, outside: it runs on every step.
    refiner = TEXT * (4 + 8) * d + 2 * d + 2 * TEXT * TEXT * 64
    embedders = TEXT * 64 * 64 + 2 * (256 * 64 + d) + (64 * 64 + d) + (128 * 64 + d)
    head = 2 * d + VIDEO * 64 * 96
    assert work().rest == refiner + embedders + head
