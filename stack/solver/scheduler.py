"""A pipeline's scheduler of which only some steps are taken, by a second-order solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from ..core.errors import StackError
from ..models.sampler import KnownSampler, LinearSampler, linear_form
from ..models.schedule import SigmaSchedule, timetable_of
from .numbers import step_weights

UNUSED = 1e-9  # weight of an estimate in a step: rounding of what is 0
Plan = Callable[[SigmaSchedule, LinearSampler, int], tuple[Sequence[int], LinearSampler]]
"""From a ladder, its numbers and those in a sample's latent, 0 where not known, to the places on it, and the solver's
numbers in calls of its own."""
Known = tuple[Any, tuple[int, ...], LinearSampler]
"""What was planned for, the places and the numbers."""


class PlacedSolver(SchedulerMixin, ConfigMixin, KnownSampler):
    """Takes few steps on the ladder that another scheduler makes.

    A pipeline asks for as many steps as without it, and loops over the timesteps that are left. A step is a weighted
    sum of the estimates of the clean sample so far, in fp32, returned in the sample's dtype.

    Args:
        own: the scheduler that makes the ladder; it is copied.
        image_tokens: that the pipeline computes a dynamic shift from.

    Attributes:
        latent: numbers in one sample's latent in the last run, 0 before the first.
    """

    order = 1  # denoiser calls per step

    def __init__(self, own: Any, plan: Plan, image_tokens: int = 0):
        self.own, self.plan, self.image_tokens, self.latent = copy.deepcopy(own), plan, image_tokens, 0
        self._internal_dict = own.config  # pipelines read the settings of their own scheduler
        self.timesteps: torch.Tensor = own.timesteps
        self.num_inference_steps: int | None = None
        self.places: tuple[int, ...] = ()
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._known: Known | None = None
        self._kept: dict[int, torch.Tensor] = {}
        self._keep_ladder([])

    @property
    def init_noise_sigma(self) -> Any:
        return self.own.init_noise_sigma

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def running(self) -> bool:
        """Whether it has made a schedule whose steps are not all taken."""
        return bool(self.places) and self._at < len(self.places)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Only the first step.

        Raises:
            StackError: another one.
        """
        if begin_index:
            raise StackError(f"the solver was asked to begin at step {begin_index}: expected a run from pure noise")
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """The ladder as the own scheduler makes it, and the solver's timesteps on it."""
        given = {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "mu": mu, "timesteps": timesteps}
        self.own.set_timesteps(**{name: value for name, value in given.items() if value is not None})
        self._known = self._planned()
        self._keep_ladder(list(self._known[1]))
        self.timesteps = self.timesteps.to(device)
        self._step_index, self._kept = None, {}

    def begins(self, numbers: int) -> None:
        if self._known is not None and numbers != self.latent:
            self.latent = numbers
            self._known = self._planned()

    def _planned(self) -> Known:
        """The plan for the ladder that the own scheduler has made."""
        ladder = timetable_of(self.own, self.image_tokens)
        key = ladder.timesteps, ladder.schedule, self.latent
        if self._known is not None and self._known[0] == key:
            return self._known
        places, form = self.plan(ladder.schedule, linear_form(self.own), self.latent)
        return key, tuple(places), form

    def _keep_ladder(self, places: list[int]) -> None:
        """Take over what of the own scheduler's ladder others read; all of it before there are places."""
        own = vars(self.own)
        self.places, steps = tuple(places), len(self.own.timesteps)
        self.timesteps = self.own.timesteps[places] if places else self.own.timesteps
        self.num_inference_steps = len(places) or None
        if "alphas_cumprod" in own:
            self.alphas_cumprod = own["alphas_cumprod"]
        if "sigmas" in own:
            ends = [*places, *range(steps, len(own["sigmas"]))]
            self.sigmas = own["sigmas"][ends] if places else own["sigmas"]

    def known_form(self) -> LinearSampler:
        if self._known is None:
            raise StackError("the solver has made no schedule: call set_timesteps() first")
        return self._known[2]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the denoiser expects it."""
        scale = self.known_form().estimates[self._at].scale
        return sample if scale == 1 else sample * scale

    @property
    def _at(self) -> int:
        return self._begin_index or 0 if self._step_index is None else self._step_index

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The latent (as `sample`) before the next call, from this call's output at `sample`.

        Raises:
            StackError: no schedule was made, or its steps are all taken.
        """
        form, at = self.known_form(), self._at
        if at >= len(form.estimates):
            raise StackError(f"the solver has {len(form.estimates)} steps, asked for another: call set_timesteps()")
        wide = torch.promote_types(sample.dtype, torch.float32)
        estimate, x = form.estimates[at], sample.to(wide)
        self._kept[at] = estimate.c * estimate.scale * x + estimate.d * model_output.to(wide)
        ratio, shares = used_weights(form, at)
        moved = ratio * x
        for call, share in shares.items():
            moved = moved + share * self._kept[call]
        self._step_index, self._kept = at + 1, {call: self._kept[call] for call in needed_after(form, at)}
        moved = moved.to(sample.dtype)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """The sample at a timestep's noise level, as the own scheduler makes it."""
        noisy: torch.Tensor = self.own.scale_noise(sample, timestep, noise)
        return noisy

    def to_json_string(self) -> str:
        """That of the own scheduler: saved beside weights, it is what a solver can be put on again."""
        return self.own.to_json_string()

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def used_weights(form: LinearSampler, at: int) -> tuple[float, dict[int, float]]:
    """A step from call `at`: the factor on its latent, and those on the estimates of calls so far that matter."""
    ratio, shares = step_weights(form, at)
    return ratio, {call: float(share) for call, share in enumerate(shares) if abs(share) > UNUSED}


def needed_after(form: LinearSampler, at: int) -> set[int]:
    """The calls up to `at` whose estimates a later step counts."""
    later = (used_weights(form, step)[1] for step in range(at + 1, len(form.estimates)))
    return {call for shares in later for call in shares if call <= at}
