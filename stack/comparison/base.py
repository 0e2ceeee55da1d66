"""The base of a comparison: the faster of the model as it is and the model with compiled blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..measure.timing import timed

TRIAL_STEPS, TRIALS = 3, 4


@dataclass
class Base:
    """What the base runs on.

    Attributes:
        denoisers: the modules to call, by the pipeline's names for them; the untouched ones, or compiled stand-ins.
        mode: "eager" or "compiled".
        step_seconds: seconds per step in the quickest trial, by mode.
    """

    denoisers: Mapping[str, nn.Module]
    mode: str
    step_seconds: dict[str, float]
    warnings: list[str]


def stand_in(denoiser: nn.Module) -> Any:
    """A copy of the modules that shares the weights: changing one leaves the other alone, no weight is held twice."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*denoiser.parameters(), *denoiser.buffers()]}
    return copy.deepcopy(denoiser, shared)


def chosen_base(denoisers: Mapping[str, Any], mode: str, step_seconds: dict[str, float]) -> Base:
    """The base that an earlier run has chosen."""
    if mode == "compiled":
        denoisers = {name: stand_in(denoiser) for name, denoiser in denoisers.items()}
        for denoiser in denoisers.values():
            denoiser.compile_repeated_blocks()
    return Base(denoisers, mode, step_seconds, [])


def choose_base(
    denoisers: Mapping[str, Any],
    run: Callable[[Mapping[str, nn.Module], int], Any],
    device: torch.device,
    steps: int = TRIAL_STEPS,
) -> Base:
    """Compile the repeated blocks of stand-ins, time both in turn, keep the faster.

    Args:
        run: generates with these denoisers in this many steps.
        steps: of a trial.

    Without a C++ compiler, or for a model whose blocks do not compile, the base is eager and a warning says why.
    """
    compiled, warnings = None, []
    run(denoisers, steps)
    try:
        compiled = {name: stand_in(denoiser) for name, denoiser in denoisers.items()}
        for denoiser in compiled.values():
            denoiser.compile_repeated_blocks()
        run(compiled, steps)
    except Exception as error:  # the compiler's own errors are of many classes, and none of them may end a comparison
        compiled = None
        first = (str(error).strip().splitlines() or [""])[0][:160]
        warnings.append(f"base could not be compiled, measured eager: {type(error).__name__}: {first}")
    candidates = {"eager": denoisers} | ({"compiled": compiled} if compiled is not None else {})
    seconds: dict[str, list[float]] = {mode: [] for mode in candidates}
    for _ in range(TRIALS if compiled is not None else 1):
        for mode, candidate in candidates.items():
            seconds[mode].append(timed(partial(run, candidate, steps), device)[1] / steps)
    # The quickest trial, not the median: so short a run is only ever disturbed towards slower.
    per_step = {mode: min(values) for mode, values in seconds.items()}
    mode = min(per_step, key=lambda m: per_step[m])
    return Base(candidates[mode], mode, per_step, warnings)
