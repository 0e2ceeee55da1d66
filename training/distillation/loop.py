"""The training loop of an adapter: long steps from the teacher's states first, then whole runs on its own."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .. import checkpoint
from .student import Segments, add_lora, forced_loss, unrolled_loss
from .trajectories import Trajectories

WARMUP_UPDATES = 30
AVERAGE = 0.99  # decay per update of the averaged LoRA, which is the one that ships
SAVE_EVERY_S = 120


@dataclass(frozen=True)
class Course:
    """How an adapter is trained.

    Attributes:
        steps: of the student.
        rank: of the LoRA.
        forced, unrolled: updates of the two stages.
        lr: peak learning rate; it falls to a tenth along a cosine over both stages.
        inner: weight of the inner nodes while unrolled.
    """

    steps: int
    rank: int = 32
    forced: int = 1200
    unrolled: int = 400
    lr: float = 1e-3
    inner: float = 0.1

    @property
    def updates(self) -> int:
        return self.forced + self.unrolled


def learning_rate(course: Course, update: int) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it."""
    share = torch.tensor(update / course.updates * torch.pi)
    return course.lr * min(1.0, (update + 1) / WARMUP_UPDATES) * float(0.55 + 0.45 * torch.cos(share))


class AdapterTrainer:
    """One resumable run. State lives in `folder/state.pt`, the log in `folder/log.jsonl`."""

    def __init__(self, transformer: nn.Module, course: Course, folder: Path, of: int):
        self.transformer, self.course, self.folder = transformer, course, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.segments = Segments.even(course.steps, of)
        self.parameters = add_lora(transformer, course.rank)
        self.average = copy.deepcopy(self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=course.lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.progress = checkpoint.Progress()
        if (folder / "state.pt").exists():
            self._resume()

    def _resume(self) -> None:
        self.progress, states = checkpoint.load(self.folder / "state.pt")
        for name in ("parameters", "average"):
            for mine, saved in zip(getattr(self, name), states[name], strict=True):
                mine.data.copy_(saved)
        self.optimizer.load_state_dict(states["optimizer"])

    def save(self) -> None:
        """Write the checkpoint."""
        states = {name: [p.data for p in getattr(self, name)] for name in ("parameters", "average")}
        checkpoint.save(self.folder / "state.pt", self.progress, optimizer=self.optimizer.state_dict(), **states)

    def loss(self, batch: Trajectories) -> torch.Tensor:
        """Of the stage that the run is in."""
        if self.progress.updates >= self.course.forced:
            return unrolled_loss(self.transformer, batch, self.segments, self.course.inner)
        which = self.progress.rng.randrange(len(self.segments))
        return forced_loss(self.transformer, batch, self.segments, which)

    def update(self, batch: Trajectories) -> float:
        """One optimizer step; returns the loss."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.course, self.progress.updates)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(AVERAGE, (1 + self.progress.updates) / (10 + self.progress.updates))
        with torch.no_grad():
            for slow, fast in zip(self.average, self.parameters, strict=True):
                slow.lerp_(fast, 1 - decay)
        self.progress.updates += 1
        self.progress.samples += batch.states.shape[1]
        return loss.item()

    def run(self, batches: Iterator[Trajectories]) -> None:
        """Train to the end of the course. Ctrl-C saves first."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]}"))
        with Progress(*columns, TimeRemainingColumn()) as bar:
            shown = bar.add_task(f"{self.course.steps} steps", total=self.course.updates, loss="-")
            saved, losses = time.monotonic(), list[float]()
            try:
                while self.progress.updates < self.course.updates:
                    started = time.monotonic()
                    losses.append(self.update(next(batches)))
                    self.progress.seconds += time.monotonic() - started
                    bar.update(shown, completed=self.progress.updates)
                    if len(losses) == 25:
                        bar.update(shown, loss=f"{sum(losses) / 25:.5f}")
                        self.log(loss=round(sum(losses) / 25, 6))
                        losses.clear()
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self.save()
                        saved = time.monotonic()
            finally:
                self.save()

    def log(self, **values: float) -> None:
        """Append one line to the log."""
        p = self.progress
        stage = "unrolled" if p.updates > self.course.forced else "forced"
        line = {"updates": p.updates, "samples": p.samples, "seconds": round(p.seconds), "stage": stage, **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """Put the averaged LoRA into the student."""
        for mine, slow in zip(self.parameters, self.average, strict=True):
            mine.data.copy_(slow)

    @property
    def rng(self) -> random.Random:
        """The run's own random stream; goes on where a checkpoint left it."""
        return self.progress.rng
