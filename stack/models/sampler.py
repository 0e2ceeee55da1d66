"""A deterministic sampler as numbers: what every latent of a run is made of."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..core.errors import StackError
from .estimates import KNOWN, Estimate, estimate_at, flow_estimate
from .schedule import SigmaSchedule

PROBED_STEPS = 6  # enough for every order of diffusers' samplers, and for a third-order start of two calls a step
LARGE = 100.0  # of probing samples: beyond what any scheduler clips to
LINEAR = 1e-3  # relative: rounding is far below, clipping far above
FORGOTTEN = 1e-4  # of a debt: what is left of it after so little does not matter
NO_WEIGHT = 1e-6  # of an estimate in the next latent: nothing can be made up for by it


@dataclass(frozen=True, eq=False)
class LinearSampler:
    """A run of N denoiser calls of a sampler that neither clips nor adds noise: sums of its estimates of x0.

    Attributes:
        estimates: of each call.
        weights: (N + 1, N); row k holds the share of each x0 in the latent before call k, the last one that in the
            finished sample.
        noise: (N + 1,); the share of the first latent in the same, which no error changes.
    """

    estimates: tuple[Estimate, ...]
    weights: np.ndarray
    noise: np.ndarray
    _settled: dict[tuple[int, ...], dict[int, np.ndarray]] = field(default_factory=dict, repr=False)

    def settling(self, call: int, debts: Sequence[int]) -> dict[int, np.ndarray]:
        """What is to be added to the estimates from `call` on, so that the run is the one without debts.

        A debt is what an estimate of an earlier call should have been, less what it was. The latent behind `call` is
        then right at once. Samplers with memory use old estimates again, so that smaller parts are due at later calls,
        down to `FORGOTTEN`. Where the next latent does not depend on an estimate, it is due at the calls after.

        Args:
            debts: calls before `call`, in order.

        Returns:
            By call, the factors on each of the debts.
        """
        asked = (call, *debts)
        if asked not in self._settled:  # every request of a schedule asks alike
            self._settled[asked] = self._settling(call, debts)
        return self._settled[asked]

    def _settling(self, call: int, debts: Sequence[int]) -> dict[int, np.ndarray]:
        steps = self.weights[1:]
        open_debts, due = np.zeros((len(steps), len(debts))), {}
        open_debts[list(debts), range(len(debts))] = 1.0
        for k in range(call, len(steps)):
            if abs(steps[k, k]) > NO_WEIGHT:
                due[k] = steps[k, :k] @ open_debts[:k] / steps[k, k]
                open_debts[k] = -due[k]
        last = max((k for k, factors in due.items() if np.abs(factors).max() > FORGOTTEN), default=call - 1)
        return {k: factors for k, factors in due.items() if k <= last}

    @cached_property
    def memory(self) -> int:
        """How many calls a debt lives that is settled at once; 1 for a sampler without memory."""
        calls = range(len(self.estimates) - 1)
        return max((max(self.settling(k + 1, [k]), default=k) - k for k in calls), default=0)

    @property
    def output_weights(self) -> list[float]:
        """The share of each call's output in the latent behind it."""
        return [float(w) * e.d for w, e in zip(np.diagonal(self.weights[1:]), self.estimates, strict=True)]


def host_copy(scheduler: Any) -> Any:
    """A copy in float64 on the CPU, so that it can be stepped without a wait for the device.

    What it remembers of outputs and latents of a run that goes on counts as 0 in the copy.
    """
    probe = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        setattr(probe, name, _on_host(value))
    return probe


def _on_host(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_host(entry) for entry in value]
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if value.ndim > 1:
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    return value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype, copy=True)


class KnownSampler(ABC):
    """A scheduler that has its numbers at hand."""

    @abstractmethod
    def known_form(self) -> LinearSampler:
        """The schedule that it has made last, from its first call on.

        Raises:
            StackError: it has made none.
        """

    @abstractmethod
    def begins(self, numbers: int) -> None:
        """The first call of a run on the schedule that it has made last: a sample's latent has so many numbers."""


def linear_form(scheduler: Any, begin: int = 0) -> LinearSampler:
    """The schedule that the scheduler has made last as numbers, from the call `begin` on. It is left as it is.

    Raises:
        StackError: see `why_not_linear`; or a `KnownSampler` begins in its middle.
    """
    if isinstance(scheduler, KnownSampler):
        if begin:
            raise StackError(f"{type(scheduler).__name__} began at step {begin}: expected the whole schedule")
        return scheduler.known_form()
    if why := why_not_linear(scheduler):
        raise StackError(why)
    return _linear_form(host_copy(scheduler), begin)


def _linear_form(probe: Any, begin: int = 0) -> LinearSampler:
    """Found in one run whose sample has an entry for the first noise and one for each estimate."""
    calls = len(probe.timesteps) - begin
    units = torch.eye(calls + 1, dtype=torch.float64).reshape(calls + 1, 1, -1, 1, 1)
    rows, estimates = _run(probe, units[0], list(units[1:]), begin)
    return _form(rows, estimates)


def _form(rows: list[torch.Tensor], estimates: list[Estimate]) -> LinearSampler:
    shares = torch.stack(rows).flatten(1).numpy()
    return LinearSampler(tuple(estimates), shares[:, 1:], shares[:, 0])


@torch.no_grad()
def _run(
    probe: Any, x: torch.Tensor, clean: Sequence[torch.Tensor], begin: int = 0
) -> tuple[list[torch.Tensor], list[Estimate]]:
    """All latents (1, C, 1, 1) of a run in which the denoiser's outputs amount to these estimates of x0."""
    for name, value in (("_step_index", None), ("_begin_index", begin)):
        if name in vars(probe):
            setattr(probe, name, value)
    rows, estimates = [x], []
    for call, x0 in enumerate(clean, begin):
        estimate = estimate_at(probe, call)
        out = (x0 - estimate.c * estimate.scale * x) / estimate.d
        x = probe.step(out, probe.timesteps[call], x, return_dict=False)[0].double()
        rows.append(x)
        estimates.append(estimate)
    return rows, estimates


def flow_form(sigmas: Sequence[float]) -> LinearSampler:
    """Euler steps of a flow from each noise level to the next and to 0: m = noise - x0, x = (1 - s) x0 + s noise."""
    weights, noise = np.zeros((len(sigmas) + 1, len(sigmas))), np.ones(len(sigmas) + 1)
    for call, (at, to) in enumerate(zip(sigmas, (*sigmas[1:], 0.0), strict=True)):
        weights[call + 1] = to / at * weights[call]
        weights[call + 1, call] = 1 - to / at
        noise[call + 1] = to / at * noise[call]
    return LinearSampler(tuple(map(flow_estimate, sigmas)), weights, noise)


_judged: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()  # by scheduler: its configuration, and the words


def why_not_linear(scheduler: Any) -> str:
    """Why a run of the sampler is no sum of its estimates of x0; "" where it is. Tried once on a short schedule."""
    if isinstance(scheduler, KnownSampler):
        return ""
    config, why = _judged.get(scheduler, (None, ""))
    if config is not scheduler.config:
        why = _judge(scheduler)
        _judged[scheduler] = scheduler.config, why
    return why


def _judge(scheduler: Any) -> str:
    name, expected = type(scheduler).__name__, "expected a deterministic sampler such as flow Euler, DDIM or UniPC"
    noisy = f"{name} adds noise of its own: {expected}"
    if not isinstance(scheduler, KNOWN):
        draws = "generator" in inspect.signature(scheduler.step).parameters
        return noisy if draws else f"{name} keeps its noise levels in a way that is not known: {expected}"
    own = host_copy(scheduler)
    kind: Any = next(kind for kind in KNOWN if isinstance(scheduler, kind))
    # Not by a class made from it: schedulers of adapters take no other number of steps than their own.
    kind.set_timesteps(own, PROBED_STEPS, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
    numbers = torch.Generator().manual_seed(0)
    given = LARGE * torch.randn(len(own.timesteps) + 1, 1, 4, 1, 1, generator=numbers, dtype=torch.float64)
    ends = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.default_generator.manual_seed(seed)  # not those of the devices
            ends.append(_run(host_copy(own), given[0], list(given[1:]))[0][-1])
        if not ends[0].isfinite().all():
            return f"{name} as configured ends at numbers that are not finite: expected other final_sigmas_type"
        if not torch.equal(*ends):
            return noisy
        sums, _ = _run(host_copy(own), 2 * given[0], [2 * x0 for x0 in given[1:]])
    if float((sums[-1] - 2 * ends[0]).norm()) > LINEAR * float(sums[-1].norm()):
        return f"{name} clips its estimates: expected clip_sample and thresholding off"
    return ""


def planned_sampler(pipe: Any | None, schedule: Callable[[], SigmaSchedule]) -> Callable[[], LinearSampler]:
    """The sampler of the current request as numbers, worked out once for each schedule that the pipeline makes.

    A bare denoiser is taken for a flow on that schedule.

    Raises:
        StackError: at once, and again when it is asked for: see `why_not_linear`.
    """
    known: list[tuple[SigmaSchedule, Any, LinearSampler]] = []

    def sampler() -> LinearSampler:
        made = schedule()
        if known and made is known[0][0]:
            return known[0][2]
        # Pipelines make the same schedule anew for every call.
        scheduler = None if pipe is None else pipe.scheduler
        if known and (made, scheduler) == known[0][:2]:
            form = known[0][2]
        else:
            form = flow_form(made.sigmas) if scheduler is None else linear_form(scheduler, made.begin)
        known[:] = [(made, scheduler, form)]
        return form

    if pipe is not None and (why := why_not_linear(pipe.scheduler)):
        raise StackError(why)
    return sampler
