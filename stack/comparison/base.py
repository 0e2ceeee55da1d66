"""The base of a comparison: the faster of the model as it is and the model with compiled blocks; and its controls'."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..attention.dense_kernels import possible
from ..compile import OFF
from ..core.facts import machine_of
from ..measure.timing import timed
from ..stack import Stack
from .differences import SAME_TIME

EAGER, COMPILED, EXACT = "eager", "compiled", "exact"
TRIAL_STEPS, TRIALS = 3, 4


@dataclass
class Base:
    """What the base runs on.

    Attributes:
        denoisers: the modules to call, by the pipeline's names for them; the untouched ones, or compiled stand-ins.
        mode: "eager" or "compiled".
        step_seconds: seconds per step in the quickest trial, by mode; "exact" for what controls call.
        controls: what they call: the base, or the model with the fastest exact attention beside that.
    """

    denoisers: Mapping[str, nn.Module]
    mode: str
    step_seconds: dict[str, float]
    warnings: list[str]
    controls: Mapping[str, nn.Module]

    @property
    def pace(self) -> float:
        """Time of a step of the controls, the base's is 1."""
        seconds = self.step_seconds
        return seconds[EXACT] / seconds[self.mode] if EXACT in seconds else 1.0


def stand_in(denoiser: nn.Module) -> Any:
    """A copy of the modules that shares the weights: changing one leaves the other alone, no weight is held twice."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*denoiser.parameters(), *denoiser.buffers()]}
    return copy.deepcopy(denoiser, shared)


def can_be_exact(denoisers: Mapping[str, Any]) -> bool:
    """Whether there is another exact kernel than torch's choice for them."""
    first = next(iter(denoisers.values()))
    return possible(machine_of(first.device), first.dtype)


def exact(denoisers: Mapping[str, Any], mode: str) -> Mapping[str, Any] | None:
    """Stand-ins with the fastest exact attention; None where torch's choice is the fastest.

    Args:
        mode: of the base.
    """
    if not can_be_exact(denoisers):
        return None
    copies = {name: stand_in(denoiser) for name, denoiser in denoisers.items()}
    for made in copies.values():
        Stack(made).dense_attn().compile(OFF if mode == EAGER else "default").apply()
    return copies


def compiled(denoisers: Mapping[str, Any]) -> dict[str, Any]:
    """Stand-ins with compiled blocks."""
    copies = {name: stand_in(denoiser) for name, denoiser in denoisers.items()}
    for made in copies.values():
        made.compile_repeated_blocks()
    return copies


def chosen_base(denoisers: Mapping[str, Any], mode: str, step_seconds: dict[str, float]) -> Base:
    """The base that an earlier run has chosen."""
    chosen = denoisers if mode == EAGER else compiled(denoisers)
    fast = exact(denoisers, mode) if EXACT in step_seconds else None
    return Base(chosen, mode, step_seconds, [], fast or chosen)


def choose_base(
    denoisers: Mapping[str, Any],
    run: Callable[[Mapping[str, nn.Module], int], Any],
    device: torch.device,
    steps: int = TRIAL_STEPS,
    compile_too: bool = True,
    controls_too: bool = True,
) -> Base:
    """Compile the repeated blocks of stand-ins, time both in turn, keep the faster; then time exact attention for the
    controls, and keep it where it is faster by more than timing repeats.

    Args:
        run: generates with these denoisers in this many steps.
        steps: of a trial.
        compile_too: False leaves the base eager.
        controls_too: False where there are none.

    Without a C++ compiler, or for a model whose blocks do not compile, the base is eager and a warning says why.
    """
    candidates: dict[str, Mapping[str, Any]] = {EAGER: denoisers}
    warnings: list[str] = []

    def attempted(make: Callable[[], Mapping[str, Any] | None], failed: str) -> Mapping[str, Any] | None:
        try:
            if (made := make()) is not None:
                run(made, steps)
        except Exception as error:  # the compiler's own are of many classes, and none of them may end a comparison
            first = (str(error).strip().splitlines() or [""])[0][:160]
            warnings.append(f"{failed}: {type(error).__name__}: {first}")
            return None
        return made

    run(denoisers, steps)
    if compile_too and (fast := attempted(lambda: compiled(denoisers), "base could not be compiled, measured eager")):
        candidates[COMPILED] = fast
    seconds: dict[str, list[float]] = {mode: [] for mode in candidates}
    for _ in range(TRIALS if COMPILED in candidates or (controls_too and can_be_exact(denoisers)) else 1):
        for mode, candidate in candidates.items():
            seconds[mode].append(timed(partial(run, candidate, steps), device)[1] / steps)
    # The quickest trial, not the median: so short a run is only ever disturbed towards slower.
    per_step = {mode: min(values) for mode, values in seconds.items()}
    mode = min(per_step, key=lambda m: per_step[m])
    failed = "controls have the base's attention, the faster exact kernel failed"
    controls = attempted(lambda: exact(denoisers, mode), failed) if controls_too else None
    if controls is not None:
        quickest = min(timed(partial(run, controls, steps), device)[1] / steps for _ in range(TRIALS))
        if per_step[mode] / quickest > 1 + SAME_TIME:
            per_step[EXACT] = quickest
        else:
            controls = None
    return Base(candidates[mode], mode, per_step, warnings, controls or candidates[mode])
