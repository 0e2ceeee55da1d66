"""The loop with a learner of one layer; the loss of each reference model before it is trained."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stack.reference.classes import NULL
from training import diffusion, flow, video
from training.loop import Trainer, learning_rate
from training.task import Stage, Task

STAGES = (Stage(size=4, batch=4, samples=120, lr=1e-2), Stage(size=8, batch=2, samples=60, lr=1e-3))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Linear(3, 1)


def new_line() -> Line:
    torch.manual_seed(0)
    return Line()


def loss(learner: Line, stage: Stage, rng: random.Random) -> torch.Tensor:
    """Learns the sum of three numbers, drawn from both random states."""
    x = torch.randn(stage.batch, 3) + rng.random()
    return (learner.transformer(x)[:, 0] - x.sum(1)).square().mean()


TASK = Task(STAGES, new_line, loss, lambda learner, stage: (learner, stage))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.flatten() for p in [*trainer.learner.parameters(), *trainer.average.parameters()]]).detach()


def stop(trainer: Trainer, after: int) -> None:
    """Train as far as Ctrl-C in the update after this many."""
    inner, updates = trainer.task.loss, iter(range(after))

    def interrupted(*args: Any) -> torch.Tensor:
        if next(updates, None) is None:
            raise KeyboardInterrupt
        return inner(*args)

    trainer.task = replace(trainer.task, loss=interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(lambda stage: None)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    ends: list[int] = []
    whole = Trainer(TASK, tmp_path / "whole", "cpu", compiled=False)
    whole.run(ends.append)
    assert ends == [0, 1]
    for updates in (7, 31):
        stop(Trainer(TASK, tmp_path / "parts", "cpu", compiled=False), updates)
    last = Trainer(TASK, tmp_path / "parts", "cpu", compiled=False)
    assert (last.progress.stage, last.progress.updates) == (1, 38)
    last.run(ends.append)
    assert ends == [0, 1, 1]
    assert torch.equal(weights(last), weights(whole))


def test_the_log_tells_stage_samples_and_falling_loss(tmp_path: Path) -> None:
    trainer = Trainer(TASK, tmp_path, "cpu", compiled=False)
    trainer.run(lambda stage: None)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["stage"], first["samples"], first["updates"], first["size"]) == (0, 100, 25, 4)
    assert (second["stage"], second["samples"], second["updates"], second["size"]) == (1, 50, 55, 8)
    assert second["loss"] < first["loss"]


def test_the_learning_rate_warms_up_and_ends_at_a_tenth() -> None:
    stage = Stage(size=4, batch=4, samples=1000, lr=1e-3)
    assert learning_rate(stage, 0, 0) == pytest.approx(1e-3 / 60)
    assert learning_rate(stage, 500, 1000) == pytest.approx(1e-3)
    assert learning_rate(stage, 1000, 1000) == pytest.approx(1e-4)


def test_blocks_compile_in_place_under_their_own_names(tmp_path: Path) -> None:
    for task in (flow.TASK, diffusion.TASK, video.TASK):
        plain = task.new_learner()
        trainer = Trainer(task, tmp_path / type(plain).__name__, "cpu", compiled=True)
        assert list(trainer.learner.state_dict()) == list(plain.state_dict())
        compiled = [m for m in trainer.learner.modules() if m._compiled_call_impl is not None]
        assert len(compiled) == 6


def test_an_untrained_dit_has_the_loss_of_predicting_nothing() -> None:
    learner, stage = diffusion.new_learner(), Stage(size=8, batch=64, samples=64, lr=1e-3)
    asked: list[torch.Tensor] = []
    embedders = [block.norm1.emb.class_embedder.embedding_table for block in learner.transformer.transformer_blocks]
    for embedder in embedders:
        embedder.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    with torch.no_grad():
        found = sum(diffusion.velocity_loss(learner, stage, random.Random(i)).item() for i in range(10)) / 10
    # Half the noise and half the pictures, over uniform times of the cosine schedule: (1 + E[picture^2]) / 2.
    clean = diffusion.draw([diffusion.sample_class(random.Random(i)) for i in range(500)], 8).square().mean().item()
    assert found == pytest.approx((1 + clean) / 2, rel=0.05)
    hidden = torch.stack(asked).eq(NULL)
    assert hidden.float().mean().item() == pytest.approx(0.1, abs=0.04)
    # Every block and the head see the same labels: a class that is hidden is hidden from all of them.
    batches = hidden.unflatten(0, (10, len(embedders) + 1))
    assert torch.equal(batches.all(1), batches.any(1))


def test_a_few_updates_of_the_dit_lower_its_loss(tmp_path: Path) -> None:
    stage = Stage(size=8, batch=16, samples=10_000, lr=1e-3)
    task = Task((stage,), diffusion.new_learner, diffusion.velocity_loss, diffusion.pipeline)
    trainer = Trainer(task, tmp_path, "cpu", compiled=False)
    losses = [trainer.update(stage) for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    pipe = task.pipeline(trainer.average, stage)
    assert pipe("a red ring", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 8, 8)
