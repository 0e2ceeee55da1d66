"""`python -m training.train_adapter shapes-flux --steps 8`: distil a reference model into a few-step LoRA.

First the teacher's trajectories are written (`--out`/MODEL/trajectories), then the LoRA is trained on them. Both go on
where an earlier run stopped. The end is a `.safetensors` file with its card beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from stack.core.facts import best_dtype
from stack.models.derive.wiring import wiring_of
from stack.reference.load import load, reference

from .distillation.card import write_card
from .distillation.loop import AdapterTrainer, Course
from .distillation.student import save_lora
from .distillation.trajectories import prepare, read
from .loop import compile_blocks
from .train import let_signals_save

TEACHER_STEPS = 50


def main(
    model: Annotated[str, typer.Argument(help="a reference model on flow matching")],
    steps: Annotated[int, typer.Option(min=1, help="of the student")] = 8,
    out: Annotated[Path, typer.Option(help="folder of trajectories, checkpoints and logs")] = Path("runs"),
    trajectories: Annotated[int, typer.Option(min=4)] = 800,
    batch: Annotated[int, typer.Option(min=1, help="trajectories per file and update")] = 4,
    forced: Annotated[int, typer.Option(min=0, help="updates from the teacher's states")] = 1200,
    unrolled: Annotated[int, typer.Option(min=0, help="updates through the student's whole run")] = 400,
    rank: Annotated[int, typer.Option(min=1)] = 32,
    to: Annotated[Path | None, typer.Option("--export", help="the finished .safetensors file")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """Train a few-step adapter. Ctrl-C saves; the same command goes on."""
    let_signals_save()
    pipe = load(model, best_dtype(torch.device("cpu")))
    files = prepare(pipe, reference(model), out / model / "trajectories", trajectories, batch, TEACHER_STEPS)
    folder = out / f"{model}-{steps}"
    trainer = AdapterTrainer(pipe.transformer, Course(steps, rank, forced, unrolled), folder, TEACHER_STEPS)
    if compiled:
        compile_blocks(pipe.transformer)
    trainer.run(read(files, trainer.rng))
    trainer.finish()
    goal = to or folder / f"{model}-{steps}.safetensors"
    save_lora(pipe.transformer, goal)
    levels = next(read(files, trainer.rng)).sigmas
    family = wiring_of(pipe.transformer).family
    card = write_card(goal, model, family, [levels[n] for n in trainer.segments.nodes[:-1]], TEACHER_STEPS)
    Console().print(f"wrote {goal} and {card}")


if __name__ == "__main__":
    typer.run(main)
