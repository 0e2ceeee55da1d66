"""`python -m training.train shapes-flux`: train a reference model, or go on where the last run stopped.

The run's folder holds a checkpoint and the log; at the end of every stage the averaged weights are scored by the
shipped reader, and after the last one they are written as the package's own (`--export`). `reader` trains the reader.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from stack.reference.load import load_reader, reference, weights_folder

from . import diffusion, flow, video
from .evaluate import scores
from .loop import Trainer
from .reader import held_out_accuracy, train_reader
from .task import Stage, Task

TASKS: dict[str, Task[Any]] = {"shapes-flux": flow.TASK, "shapes-dit": diffusion.TASK, "shapes-video": video.TASK}
READER = "reader"  # also the name of its folder
READER_BAR = 0.98


def write_reader(folder: Path) -> None:
    """Train the reader that scores every model, and write it in bf16.

    Raises:
        RuntimeError: it misreads held-out drawings.
    """
    reader = train_reader()
    seen = held_out_accuracy(reader)["accuracy"]
    if seen < READER_BAR:
        raise RuntimeError(f"the reader found {seen:.3f} of the attributes of held-out drawings, expected {READER_BAR}")
    reader.to(torch.bfloat16).save_pretrained(folder)


def pipeline_of(trainer: Trainer, stage: Stage) -> Any:
    """The averaged weights as a pipeline at the size of a stage."""
    pipe = trainer.task.pipeline(trainer.average, stage)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(trainer: Trainer, folder: Path) -> None:
    """Write the averaged weights in bf16 as a diffusers folder, at the size of the last stage."""
    pipe = pipeline_of(trainer, trainer.task.stages[-1])
    pipe.save_pretrained(folder)
    type(pipe).from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)


def let_signals_save() -> None:
    """Let Ctrl-C and `kill` stop a run in good order, in the background too, where shells have SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def train(model: str, folder: Path, device: str, compiled: bool) -> Trainer:
    """Train a model to the end of its last stage; every stage ends with a score in the log."""
    task, reader = TASKS[model], load_reader(model)
    trainer = Trainer(task, folder, device, compiled)

    def score(number: int) -> None:
        stage = task.stages[number]
        found = scores(pipeline_of(trainer, stage), reader, reference(model), prompts=32, steps=25)
        trainer.log(size=stage.size, frames=stage.frames, **{name: round(share, 4) for name, share in found.items()})
        Console().print(f"stage {number} ({stage.tokens} tokens): accuracy {found['accuracy']:.3f}")

    trainer.run(score)
    return trainer


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(TASKS)}, or {READER}")],
    out: Annotated[
        Path, typer.Option(help="folder of checkpoints and log; an unfinished run there is continued")
    ] = Path("runs"),
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    compile_blocks: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    to: Annotated[Path | None, typer.Option("--export", help="folder for the finished weights")] = None,
) -> None:
    """Train a reference model. Ctrl-C saves; the same command goes on."""
    if model not in (*TASKS, READER):
        raise typer.BadParameter(f"unknown reference model {model!r}: expected one of {', '.join([*TASKS, READER])}")
    let_signals_save()
    goal = (to or weights_folder()) / model
    if model == READER:
        write_reader(goal)
    else:
        export(train(model, out / model, device, compile_blocks), goal)
    Console().print(f"wrote {goal}")


if __name__ == "__main__":
    typer.run(main)
