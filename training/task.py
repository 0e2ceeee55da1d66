"""What the training loop has to know of a model: its stages, its learner, its loss, its pipeline."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Learner = TypeVar("Learner", bound=nn.Module)


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        size: canvas in pixels.
        batch: pictures per update.
        samples: pictures in all.
        lr: peak learning rate.
        crop: side in pixels of the part of the canvas that is trained on; 0 is all of it. Tokens keep their positions
            and the noise of the whole canvas, so a crop teaches fine detail at a fraction of the cost.
        frames: of a video; 1 is a picture.
    """

    size: int
    batch: int
    samples: int
    lr: float
    crop: int = 0
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of the whole canvas, one per 2 x 2 pixels; in videos, of two frames."""
        return math.ceil(self.frames / 2) * (self.size // 2) ** 2


@dataclass(frozen=True)
class Task(Generic[Learner]):
    """How one reference model is trained.

    Attributes:
        stages: in the order they run.
        new_learner: everything that is trained, untrained; its `transformer` is the denoiser.
        loss: of one fresh batch of a stage; the random numbers say which scenes are drawn.
        pipeline: the learner's weights as a diffusers pipeline that draws at a stage's size.
    """

    stages: tuple[Stage, ...]
    new_learner: Callable[[], Learner]
    loss: Callable[[Learner, Stage, random.Random], torch.Tensor]
    pipeline: Callable[[Learner, Stage], Any]
