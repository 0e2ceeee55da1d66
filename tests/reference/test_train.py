"""The training command, short of the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

from stack.loading import load
from stack.reference.load import REFERENCES
from stack.reference.names import SHARED
from training.loop import Trainer
from training.train import TASKS, export, let_signals_save, main


@pytest.fixture
def handlers() -> Iterator[None]:
    """What the process does on a signal, put back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_like_ctrl_c(handlers: None, number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)  # as a shell leaves SIGINT for what it starts in the background
    let_signals_save()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_every_reference_model_can_be_trained() -> None:
    assert list(TASKS) == [name for name, known in REFERENCES.items() if name not in SHARED]
    with pytest.raises(typer.BadParameter, match="expected one of shapes-flux, shapes-dit, shapes-video, reader"):
        main("shapes")


@pytest.mark.parametrize("name", TASKS)
def test_averaged_weights_are_written_in_bf16_at_the_last_size(tmp_path: Path, name: str) -> None:
    trainer = Trainer(TASKS[name], tmp_path / "run", "cpu", compiled=False)
    with torch.no_grad():
        for weight in trainer.average.parameters():
            weight.fill_(1.25)
    export(trainer, tmp_path / name)
    pipe = load(str(tmp_path / name), dtype=torch.float32, device="cpu")
    assert type(pipe) is REFERENCES[name].pipeline
    assert pipe.config.size == TASKS[name].stages[-1].size
    stored = load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert sum(weight.nbytes for weight in stored.values()) < 10.5e6
    assert all(bool((weight == 1.25).all()) for weight in stored.values())
