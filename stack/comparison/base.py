"""The base of a comparison: the model as it is, or made as fast as exact means make it, if that is faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..attention.dense_kernels import AUTO as KERNEL_BY_SHAPE
from ..attention.dense_kernels import TORCH, possible
from ..core.facts import machine_of
from ..measure.timing import timed
from ..stack import Stack

EAGER, COMPILED = "eager", "compiled"
TRIAL_STEPS, TRIALS = 3, 4


@dataclass
class Base:
    """What the base runs on.

    Attributes:
        denoisers: the modules to call, by the pipeline's names for them; the untouched ones, or compiled stand-ins.
        mode: "eager", or "compiled": compiled blocks, and the fastest exact attention.
        attention: the kernel of attention that calls may have; "torch" where torch's choice is the fastest.
        step_seconds: seconds per step in the quickest trial, by mode.
    """

    denoisers: Mapping[str, nn.Module]
    mode: str
    step_seconds: dict[str, float]
    warnings: list[str]
    attention: str = TORCH


def stand_in(denoiser: nn.Module) -> Any:
    """A copy of the modules that shares the weights: changing one leaves the other alone, no weight is held twice."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*denoiser.parameters(), *denoiser.buffers()]}
    return copy.deepcopy(denoiser, shared)


def made_fast(denoisers: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Stand-ins with compiled blocks and the fastest exact attention, and the name of its kernel."""
    copies, attention = {name: stand_in(denoiser) for name, denoiser in denoisers.items()}, TORCH
    for made in copies.values():
        if possible(machine_of(made.device), made.dtype):
            attention = KERNEL_BY_SHAPE
            Stack(made).dense_attn().compile().apply()
        else:
            made.compile_repeated_blocks()
    return copies, attention


def chosen_base(denoisers: Mapping[str, Any], mode: str, step_seconds: dict[str, float]) -> Base:
    """The base that an earlier run has chosen."""
    if mode == EAGER:
        return Base(denoisers, mode, step_seconds, [])
    fast, attention = made_fast(denoisers)
    return Base(fast, mode, step_seconds, [], attention)


def choose_base(
    denoisers: Mapping[str, Any],
    run: Callable[[Mapping[str, nn.Module], int], Any],
    device: torch.device,
    steps: int = TRIAL_STEPS,
) -> Base:
    """Make stand-ins fast by exact means, time both in turn, keep the faster.

    Args:
        run: generates with these denoisers in this many steps.
        steps: of a trial.

    Without a C++ compiler, or for a model whose blocks do not compile, the base is eager and a warning says why.
    """
    compiled, attention, warnings = None, TORCH, []
    run(denoisers, steps)
    try:
        compiled, attention = made_fast(denoisers)
        run(compiled, steps)
    except Exception as error:  # the compiler's own errors are of many classes, and none of them may end a comparison
        compiled = None
        first = (str(error).strip().splitlines() or [""])[0][:160]
        warnings.append(f"base could not be compiled, measured eager: {type(error).__name__}: {first}")
    candidates = {EAGER: denoisers} | ({COMPILED: compiled} if compiled is not None else {})
    seconds: dict[str, list[float]] = {mode: [] for mode in candidates}
    for _ in range(TRIALS if compiled is not None else 1):
        for mode, candidate in candidates.items():
            seconds[mode].append(timed(partial(run, candidate, steps), device)[1] / steps)
    # The quickest trial, not the median: so short a run is only ever disturbed towards slower.
    per_step = {mode: min(values) for mode, values in seconds.items()}
    mode = min(per_step, key=lambda m: per_step[m])
    return Base(candidates[mode], mode, per_step, warnings, attention if mode == COMPILED else TORCH)
