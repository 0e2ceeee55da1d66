"""`python -m stack.reference.train shapes-flux`: train a reference model, or go on where the last run stopped.

The run's folder holds a checkpoint and the log; at the end of every stage the averaged weights are scored, and
after the last one they are written as the package's own (`--export`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from .classifier import SceneClassifier
from .evaluate import scores
from .load import MODELS, weights_folder
from .pipeline import ShapesFluxPipeline
from .shapes_flux import STAGES, new_scheduler
from .training.loop import Trainer
from .training.reader import held_out_accuracy, train_reader

READER_BAR = 0.98


def reader_for(folder: Path) -> SceneClassifier:
    """The reader of a run: trained once, then read from `folder/reader`."""
    place = folder / "reader"
    if not place.is_dir():
        reader = train_reader()
        seen = held_out_accuracy(reader)["accuracy"]
        if seen < READER_BAR:
            raise RuntimeError(
                f"the reader found {seen:.3f} of the attributes of held-out drawings, expected {READER_BAR}"
            )
        reader.to(torch.bfloat16).save_pretrained(place)
    return SceneClassifier.from_pretrained(place).float().eval()


def pipeline_of(trainer: Trainer, size: int) -> ShapesFluxPipeline:
    """The averaged weights as a pipeline at a resolution."""
    average = trainer.average
    pipe = ShapesFluxPipeline(new_scheduler(), average.transformer.eval(), average.prompt_encoder.eval(), size=size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(trainer: Trainer, folder: Path, size: int) -> None:
    """Write the averaged weights in bf16 as a diffusers folder."""
    pipe = pipeline_of(trainer, size)
    pipe.save_pretrained(folder)
    ShapesFluxPipeline.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(MODELS)}")],
    out: Annotated[
        Path, typer.Option(help="folder of checkpoints and log; an unfinished run there is continued")
    ] = Path("runs"),
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    compile_blocks: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    to: Annotated[Path | None, typer.Option("--export", help="folder for the finished weights")] = None,
) -> None:
    """Train a reference model. Ctrl-C saves; the same command goes on."""
    if model not in MODELS:
        raise typer.BadParameter(f"unknown reference model {model!r}: expected one of {', '.join(MODELS)}")
    folder = out / model
    reader = reader_for(folder)
    trainer = Trainer(folder, device, compile_blocks)

    def score(stage: int) -> None:
        found = scores(pipeline_of(trainer, STAGES[stage].size), reader, prompts=32, steps=25)
        trainer.log(size=STAGES[stage].size, accuracy=round(found["accuracy"], 4))
        Console().print(f"stage {stage} ({STAGES[stage].tokens} tokens): accuracy {found['accuracy']:.3f}")

    trainer.run(score)
    goal = to or weights_folder()
    export(trainer, goal / model, STAGES[-1].size)
    reader.to(torch.bfloat16).save_pretrained(goal / "reader")
    Console().print(f"wrote {goal / model} and {goal / 'reader'}")


if __name__ == "__main__":
    typer.run(main)
