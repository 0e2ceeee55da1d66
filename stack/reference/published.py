"""Real models without their weights: what is published of their configurations, and the facts that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ..core.errors import StackError, choose
from ..core.facts import Facts, Machine
from ..core.files import read_toml, reason
from ..core.validate import AtLeastOne, Count, check_fields, check_table, shown
from ..model_facts import facts_of
from ..models.derive.wiring import wiring_of
from ..models.examples.shrink import defaults
from ..models.sampler import why_not_linear
from ..models.schedule import timetable_ahead

GUIDANCE = ("none", "embedded", "cfg")
LARGEST_SIDE, MOST_FRAMES = 16_384, 10_000


@dataclass(frozen=True)
class Published:
    """A model as its configuration describes it.

    Attributes:
        repo: hub id, or the name of the folder that it was read from.
        pipeline, denoiser, scheduler: names of classes of diffusers.
        guidance: "cfg" where a picture takes two denoiser calls a step, "embedded" where the model reads the scale, or
            "none".
        billions: published parameters of one denoiser; 0 where unknown.
        denoisers: how many of this shape the pipeline holds, one of them running on each step.
        size: width and height in pixels that the model is used at.
        frames: of a video; 0 for pictures.
        pixels_per_token: sides in pixels of the square that one image token stands for; 0 where unknown.
        frames_per_token: frames that one token stands for, after the first frame.
        text_tokens: of the prompt, as many as the pipeline pads to or takes at most.
        numbers_per_token: numbers per image token in the denoiser's input.
        config, schedule: entries that differ from the defaults of the denoiser and of the scheduler.
    """

    repo: str
    pipeline: str
    denoiser: str
    scheduler: str
    guidance: str = "none"
    billions: float = 0.0
    denoisers: AtLeastOne = 1
    size: tuple[AtLeastOne, AtLeastOne] = (1024, 1024)
    frames: Count = 0
    pixels_per_token: Count = 0
    frames_per_token: AtLeastOne = 1
    text_tokens: Count = 0
    numbers_per_token: Count = 0
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, self.repo)
        if self.guidance not in GUIDANCE:
            raise choose("guidance", self.guidance, GUIDANCE)

    @property
    def branches(self) -> int:
        """Denoiser calls of one step."""
        return 2 if self.guidance == "cfg" else 1

    def at(self, size: tuple[int, int] | None, frames: int | None) -> Published:
        """The same model used at another size.

        Args:
            size: width and height in pixels; None keeps its own.
            frames: of a video; None keeps its own.

        Raises:
            StackError: sides that are no multiple of a token's, or frames of a model of pictures.
        """
        if (size or frames) and not self.pixels_per_token:
            raise StackError(f"how many pixels a token of {self.repo} has is not known: leave out --size and --frames")
        if frames and not self.frames:
            raise StackError(f"{self.repo} makes pictures: expected no --frames, got {frames}")
        unit = self.pixels_per_token
        if size and any(side % unit or not unit <= side <= LARGEST_SIDE for side in size):
            raise StackError(
                f"--size must be multiples of {unit} of at most {LARGEST_SIDE} for {self.repo}, got {size[0]}x{size[1]}"
            )
        if frames and not (frames <= MOST_FRAMES and (frames - 1) % self.frames_per_token == 0):
            raise StackError(
                f"--frames must be a multiple of {self.frames_per_token} and 1 more, of at most {MOST_FRAMES}, for "
                f"{self.repo}, got {frames}"
            )
        return replace(self, size=size or self.size, frames=frames or self.frames)

    @property
    def grid(self) -> tuple[int, ...]:
        """(rows, columns) of its image tokens, or (frames, rows, columns); () where unknown."""
        if not self.pixels_per_token:
            return ()
        width, height = (side // self.pixels_per_token for side in self.size)
        times = ((self.frames - 1) // self.frames_per_token + 1,) if self.frames else ()
        return (*times, height, width)

    def new_denoiser(self) -> nn.Module:
        """The denoiser on the meta device: shapes without numbers.

        Raises:
            StackError: diffusers has no such class, or it refuses the configuration.
        """
        return self._made(self.denoiser, self.config, "meta")

    def new_scheduler(self) -> Any:
        """The scheduler.

        Raises:
            StackError: see `new_denoiser`.
        """
        return self._made(self.scheduler, self.schedule, "cpu")

    def _made(self, name: str, config: dict[str, Any], device: str) -> Any:
        kind = self._kind(name)
        try:
            with torch.device(device):
                return kind.from_config(config)
        except Exception as error:  # each class refuses entries in its own way
            raise StackError(f"{self.repo}: {name} cannot be made of its configuration: {reason(error)}") from None

    def _kind(self, name: str) -> Any:
        found = diffusers.__getattr__(name) if name in dir(diffusers) else None  # it loads its parts when asked for
        if not (isinstance(found, type) and issubclass(found, ConfigMixin)):
            raise StackError(
                f"{self.repo}: diffusers {diffusers.__version__} has no {shown(name)} with a configuration"
            )
        return found

    @property
    def full_config(self) -> dict[str, Any]:
        """The denoiser's configuration with the defaults of its class.

        Raises:
            StackError: diffusers has no such class.
        """
        return defaults(self._kind(self.denoiser)) | self.config

    def facts(self, denoiser: nn.Module, machine: Machine, steps: int) -> Facts:
        """Facts of the model on this machine, before any pass.

        Args:
            denoiser: as `new_denoiser` makes it.

        Raises:
            StackError: the class cannot be wired.
        """
        scheduler, grid = self.new_scheduler(), self.grid
        found = facts_of(denoiser, wiring_of(denoiser), None, steps)
        tokens = math.prod(grid) if grid else 0
        made = timetable_ahead(scheduler, steps, tokens)
        into, out = found.latent
        bits = 16 if machine.fast_bf16 else 32
        return replace(
            found,
            machine=machine,
            dtype="bfloat16" if bits == 16 else "float32",
            weight_bits=bits,
            activation_bits=bits,
            grid=grid,
            image_tokens=tokens,
            text_tokens=self.text_tokens,
            guidance=self.guidance,
            # Of a derived wiring only the ratio is known.
            latent=(self.numbers_per_token, self.numbers_per_token * out // into) if into else (0, 0),
            sampler=why_not_linear(scheduler),
            levels=made.schedule.levels if made else (),
            origin=self.repo,
            pipeline=True,
            pipeline_class=self.pipeline,
            denoisers=self.denoisers,
        )


def published_models() -> dict[str, Published]:
    """Every model whose configuration ships, by hub id."""
    folder = Path(str(resources.files("stack.reference"))) / "published"
    read = (_parsed(path) for path in sorted(folder.glob("*.toml")))
    return {model.repo: model for model in read}


def _parsed(path: Path) -> Published:
    return Published(**check_table(Published, read_toml(path, path.name), f"{path.name}: "))


def published(repo: str) -> Published:
    """A model whose configuration ships, by its hub id.

    Raises:
        StackError: none ships by this name.
    """
    known = published_models()
    if repo not in known:
        raise choose("model with a published configuration", repo, list(known))
    return known[repo]
