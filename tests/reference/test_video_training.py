"""Training on clips: parts of them stand where they stand in the whole, and an untrained model predicts nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from stack.reference.clips import FRAMES, draw_clips, sample_clip
from training import levels, video
from training.loop import Trainer
from training.shapes_video import PATCH, SHIFT, SIZE, shift_at
from training.task import Stage, Task
from training.video import STAGES


def test_stages_grow_to_the_native_clip() -> None:
    assert [stage.tokens for stage in STAGES] == [64, 256, 256, 1024]
    assert (STAGES[-1].size, STAGES[-1].frames) == (SIZE, FRAMES)
    assert shift_at(STAGES[-1].tokens) == SHIFT and shift_at(64) == SHIFT / 4


def test_rotary_tables_of_a_part_are_those_of_its_place_in_the_whole() -> None:
    rope = video.new_learner().transformer.rope
    native = torch.zeros(2, 3, FRAMES, SIZE, SIZE)
    whole = rope.rope(native)
    for mine, own in zip(rope(native), whole, strict=True):
        assert torch.equal(mine, own)
    rope.first = 4
    side = SIZE // PATCH
    for mine, own in zip(rope(torch.zeros(2, 3, 2, SIZE // 2, SIZE // 2)), whole, strict=True):
        assert torch.equal(mine, own.reshape(FRAMES // PATCH, side, side, -1)[2, ::2, ::2].reshape(-1, 64))


def test_an_untrained_model_has_the_loss_of_predicting_nothing() -> None:
    learner, stage = video.new_learner(), Stage(size=16, frames=2, batch=16, samples=16, lr=1e-3)
    firsts = set()
    with torch.no_grad():
        found = 0.0
        for seed in range(20):
            found += video.video_loss(learner, stage, random.Random(seed)).item() / 20
            firsts.add(learner.transformer.rope.first)
    clips = [sample_clip(random.Random(i)) for i in range(300)]
    assert found == pytest.approx(1 + draw_clips(clips, 16).square().mean().item(), rel=0.05)
    assert firsts == {0, 2, 4, 6}


def test_a_few_updates_lower_the_loss_and_a_stage_draws_at_its_size(tmp_path: Path) -> None:
    stage = Stage(size=16, frames=2, batch=4, samples=10_000, lr=3e-3)
    trainer = Trainer(Task((stage,), video.new_learner, video.video_loss, video.pipeline), tmp_path, "cpu", False)
    losses = [trainer.update(stage) for _ in range(18)]
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])
    pipe = trainer.task.pipeline(trainer.average, stage)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a red ring moving up", num_inference_steps=2, output_type="pt").frames
    assert drawn.shape == (1, 2, 3, 16, 16) and pipe.scheduler.config.shift == SHIFT / 4


def test_levels_are_stratified_shifted_and_their_velocity_leads_from_one_to_the_other() -> None:
    normal = levels.stratified_normal(1000, torch.device("cpu"))
    assert normal.diff().min() >= 0 and normal.mean().abs() < 0.01 and normal.std() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(levels.shifted_sigmas(normal, 1.0), torch.sigmoid(normal))
    assert levels.shifted_sigmas(torch.zeros(1), 3.0).item() == pytest.approx(0.75)
    clean, sigmas = torch.randn(2, 3, 4, 5), torch.tensor([0.2, 0.9])
    noisy, velocity = levels.noised(clean, sigmas)
    torch.testing.assert_close(noisy - sigmas[:, None, None, None] * velocity, clean)
