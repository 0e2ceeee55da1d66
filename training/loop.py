"""The training loop: stages of growing resolution, an averaged copy of the weights, checkpoints, a log."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn

from . import checkpoint
from .task import Stage, Task

WARMUP_UPDATES = 60
AVERAGE = 0.998  # decay per update of the averaged weights, which are the ones that ship
SAVE_EVERY_S = 120
COOLDOWN = 0.35  # share of each stage over which the learning rate falls to a tenth


def learning_rate(stage: Stage, samples: int, updates: int) -> float:
    """Linear warm-up over the first updates of the run, flat, then down to a tenth at the end of each stage."""
    left = 1 - samples / stage.samples
    return stage.lr * min(1.0, (updates + 1) / WARMUP_UPDATES) * min(1.0, 0.1 + 0.9 * left / COOLDOWN)


def compile_blocks(transformer: nn.Module) -> None:
    """Compile every block in place; blocks of one class share their code."""
    for part in transformer.children():
        if isinstance(part, nn.ModuleList):
            for block in part:
                block.compile()


class Trainer:
    """One resumable run of a task. State lives in `folder/state.pt`, the log in `folder/log.jsonl`."""

    def __init__(self, task: Task[Any], folder: Path, device: str, compiled: bool):
        self.task, self.folder = task, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.learner = task.new_learner().to(device)
        self.average = copy.deepcopy(self.learner).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
        self.progress = checkpoint.Progress()
        if (folder / "state.pt").exists():
            self._resume()
        if compiled:
            compile_blocks(self.learner.transformer)

    def _resume(self) -> None:
        self.progress, states = checkpoint.load(self.folder / "state.pt")
        self.learner.load_state_dict(states["learner"])
        self.average.load_state_dict(states["average"])
        self.optimizer.load_state_dict(states["optimizer"])

    def save(self) -> None:
        """Write the checkpoint."""
        states = {name: getattr(self, name).state_dict() for name in ("learner", "average", "optimizer")}
        checkpoint.save(self.folder / "state.pt", self.progress, **states)

    def log(self, **values: float) -> None:
        """Append one line to the log."""
        p = self.progress
        line = {"stage": p.stage, "samples": p.samples, "updates": p.updates, "seconds": round(p.seconds), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def update(self, stage: Stage) -> float:
        """One optimizer step; returns the loss."""
        rate = learning_rate(stage, self.progress.samples, self.progress.updates)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.learner, stage, self.progress.rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimizer.step()
        # The average starts young: early on it may not remember the untrained weights.
        decay = min(AVERAGE, (1 + self.progress.updates) / (10 + self.progress.updates))
        pairs = zip(self.average.parameters(), self.learner.parameters(), strict=True)
        with torch.no_grad():
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)
        self.progress.samples += stage.batch
        self.progress.updates += 1
        return loss.item()

    def run(self, on_stage_end: Callable[[int], None]) -> None:
        """Train from where the run stands to the end of the last stage. Ctrl-C saves first."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]}"))
        with Bar(*columns, TimeRemainingColumn()) as bar:
            try:
                while self.progress.stage < len(self.task.stages):
                    self._run_stage(bar)
                    on_stage_end(self.progress.stage)
                    self.progress.stage, self.progress.samples = self.progress.stage + 1, 0
            finally:
                self.save()

    def _run_stage(self, bar: Bar) -> None:
        stage = self.task.stages[self.progress.stage]
        shown = bar.add_task(f"{stage.tokens} tokens", total=stage.samples, completed=self.progress.samples, loss="-")
        losses: list[float] = []
        saved = time.monotonic()
        while self.progress.samples < stage.samples:
            started = time.monotonic()
            losses.append(self.update(stage))
            self.progress.seconds += time.monotonic() - started
            if len(losses) == 25:
                mean = sum(losses) / len(losses)
                bar.update(shown, completed=self.progress.samples, loss=f"{mean:.4f}")
                self.log(size=stage.size, frames=stage.frames, loss=round(mean, 5))
                losses.clear()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
