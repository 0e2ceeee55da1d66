"""Training of adapters: teacher states, segments, losses, going on where a run stopped, the file and its card."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stack import Stack
from stack.distill.find import find_card
from stack.reference.load import reference
from tests.conftest import tiny_pipe
from training.distillation.card import write_card
from training.distillation.loop import AdapterTrainer, Course, learning_rate
from training.distillation.student import Segments, forced_loss, save_lora, unrolled_loss
from training.distillation.trajectories import Trajectories, prepare, teach

TEACHER = 14


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Path]]:
    pipe, folder = tiny_pipe(), tmp_path_factory.mktemp("trajectories")
    return pipe, prepare(pipe, reference("shapes-flux"), folder, count=4, batch=2, steps=TEACHER)


def first(files: list[Path]) -> Trajectories:
    return Trajectories(**torch.load(files[0], weights_only=True))


def test_a_trajectory_is_the_samplers_own(trajectories: tuple[Any, list[Path]]) -> None:
    """States of an uncached teacher, noise first; x_(i+1) = x_i + (sigma_(i+1) - sigma_i) v(x_i)."""
    pipe = tiny_pipe()
    with Stack(pipe, steps=TEACHER) as stack:
        found = teach(stack, ["a red ring"], [5])
    assert found.states.shape[:2] == (TEACHER + 1, 1) and len(found.sigmas) == TEACHER + 1
    assert found.sigmas[0] == 1 and found.sigmas[-1] == 0 and found.time_scale == 1
    assert float(found.states[0].float().std()) == pytest.approx(1, abs=0.05)
    with torch.no_grad():
        x = found.states[3].float()
        timestep = torch.tensor([found.sigmas[3] * found.time_scale])
        v = pipe.transformer(hidden_states=x, timestep=timestep, return_dict=False, **found.arguments)[0]
    expected = x + (found.sigmas[4] - found.sigmas[3]) * v
    assert float((found.states[4].float() - expected).abs().max()) < 5e-3  # states are kept in float16


def test_files_that_are_there_are_kept(trajectories: tuple[Any, list[Path]]) -> None:
    pipe, files = trajectories
    before = [file.stat().st_mtime_ns for file in files]
    again = prepare(pipe, reference("shapes-flux"), files[0].parent, count=4, batch=2, steps=TEACHER)
    assert again == files and [file.stat().st_mtime_ns for file in again] == before
    assert len(files) == 2 and first(files).states.shape[1] == 2


@pytest.mark.parametrize(
    ("steps", "of", "nodes"), [(4, 50, (0, 12, 25, 38, 50)), (1, 14, (0, 14)), (7, 14, (0, 2, 4, 6, 8, 10, 12, 14))]
)
def test_segments_split_the_teachers_steps_evenly(steps: int, of: int, nodes: tuple[int, ...]) -> None:
    assert Segments.even(steps, of).nodes == nodes and len(Segments.even(steps, of)) == steps


def test_the_teacher_itself_has_no_forced_loss_on_its_own_steps() -> None:
    """With as many segments as the teacher has steps, an untrained student is right; with few it is not."""
    pipe = tiny_pipe()
    with Stack(pipe, steps=TEACHER) as stack:
        batch = teach(stack, ["a red ring", "a blue star"], [5, 6])
    with torch.no_grad():
        every = [forced_loss(pipe.transformer, batch, Segments.even(TEACHER, TEACHER), i) for i in range(TEACHER)]
        few = [forced_loss(pipe.transformer, batch, Segments.even(2, TEACHER), i) for i in range(2)]
    assert max(every) < 1e-6 < 100 * float(max(every)) < float(max(few))


def test_unrolled_goes_on_from_the_students_own_states() -> None:
    pipe = tiny_pipe()
    with Stack(pipe, steps=TEACHER) as stack:
        batch = teach(stack, ["a red ring"], [5])
    segments, x = Segments.even(2, TEACHER), batch.states[0].float()
    with torch.no_grad():
        for start, end in itertools.pairwise(segments.nodes):
            timestep = torch.tensor([batch.sigmas[start]])
            v = pipe.transformer(hidden_states=x, timestep=timestep, return_dict=False, **batch.arguments)[0]
            x = x + (batch.sigmas[end] - batch.sigmas[start]) * v
        expected = (x - batch.states[-1].float()).square().mean()
        assert float(unrolled_loss(pipe.transformer, batch, segments, 0.0)) == pytest.approx(float(expected), rel=1e-4)
        assert float(unrolled_loss(pipe.transformer, batch, segments, 1.0)) > float(expected)


def trainer_of(folder: Path, **course: Any) -> AdapterTrainer:
    pipe = tiny_pipe()
    return AdapterTrainer(pipe.transformer, Course(2, rank=4, **course), folder, TEACHER)


def test_an_interrupted_run_ends_as_one_that_was_not(trajectories: tuple[Any, list[Path]], tmp_path: Path) -> None:
    batch = first(trajectories[1])
    whole = trainer_of(tmp_path / "whole", forced=3, unrolled=2, lr=1e-2)
    whole.run(itertools.repeat(batch))

    def two_batches() -> Any:
        yield batch
        yield batch
        raise KeyboardInterrupt

    halted = trainer_of(tmp_path / "halted", forced=3, unrolled=2, lr=1e-2)
    with pytest.raises(KeyboardInterrupt):
        halted.run(two_batches())
    resumed = trainer_of(tmp_path / "halted", forced=3, unrolled=2, lr=1e-2)
    assert resumed.progress.updates == 2
    resumed.run(itertools.repeat(batch))
    for mine, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_few_updates_bring_the_student_nearer(trajectories: tuple[Any, list[Path]], tmp_path: Path) -> None:
    """On one batch, learnt by heart; nothing but the LoRA moves."""
    batch = first(trajectories[1])
    trainer = trainer_of(tmp_path, forced=0, unrolled=25, lr=1e-2)
    frozen = {name: p.clone() for name, p in trainer.transformer.named_parameters() if not p.requires_grad}
    losses = [trainer.update(batch) for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.transformer.named_parameters() if name in frozen)


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    course = Course(4, forced=60, unrolled=40, lr=1e-3)
    rates = [learning_rate(course, update) for update in range(course.updates)]
    assert rates[0] < 1e-4 and max(rates) > 7e-4 and rates[-1] == pytest.approx(1e-4, rel=0.02)


def test_the_file_and_its_card_are_an_adapter(trajectories: tuple[Any, list[Path]], tmp_path: Path) -> None:
    """Saved, put on a fresh model by its card, it computes what the trained student computed."""
    batch = first(trajectories[1])
    trainer = trainer_of(tmp_path / "run", forced=0, unrolled=4, lr=1e-2)
    trainer.run(itertools.repeat(batch))
    trainer.finish()
    weights = tmp_path / "mine-2.safetensors"
    save_lora(trainer.transformer, weights)
    alphas = {key: value for key, value in load_file(weights).items() if key.endswith("alpha")}
    assert alphas and all(float(alpha) == 4 for alpha in alphas.values())
    levels = [batch.sigmas[node] for node in trainer.segments.nodes[:-1]]
    card = find_card(str(write_card(weights, "shapes-flux", "flux", levels, TEACHER)))
    assert card.verified and card.steps == 2 and card.sigmas() == pytest.approx(tuple(levels), abs=1e-5)
    pipe = tiny_pipe()
    with Stack(pipe).distill(str(weights.with_suffix(".toml"))) as stack, torch.no_grad():
        got = stack.denoiser(
            hidden_states=batch.states[0].float(), timestep=torch.full((2,), 1.0), return_dict=False, **batch.arguments
        )[0]
    with torch.no_grad():
        expected = trainer.transformer(
            hidden_states=batch.states[0].float(), timestep=torch.full((2,), 1.0), return_dict=False, **batch.arguments
        )[0]
    assert float((got - expected).norm() / expected.norm()) < 5e-3  # the file is in bf16
