"""What is tried: passes, and their settings, as far as the plan for this model and machine keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import StackError
from ..core.plan import Plan

Stages = dict[str, dict[str, Any]]

OFF, EXACT = "off", "dense_attn"
# Rounding that is faster somewhere, and rounding that only saves memory: tried where memory is limited.
FASTER, SMALLER = ("int8", "fp8"), ("int8-weight", "nf4")
METHODS = ("predictor-corrector", "svd", "taylorseer")
KEEPS = (0.2, 0.8, 0.1)  # share of the blocks of attention: least, most, step
FEWEST_STEPS = 2
SKIPS = (OFF, "cache", "solver")


class Chooser(Protocol):
    """What is asked of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of these."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number, both ends included."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A number, both ends included."""
        ...


@dataclass(frozen=True)
class Space:
    """The settings that can be tried on one model.

    Attributes:
        steps: of the model without a stack.
        schemes: for the linears.
        sparse: whether attention may be sparse.
        methods: caches.
        solver: whether fewer, second-order steps may be taken instead.
        fixed: stages that every candidate has as they are, such as an adapter's, or a faster exact kernel.
    """

    steps: int
    schemes: tuple[str, ...]
    sparse: bool
    methods: tuple[str, ...]
    solver: bool
    fixed: Mapping[str, dict[str, Any]]

    @property
    def skips(self) -> tuple[str, ...]:
        """Ways to leave steps out: none, a cache, the solver."""
        there = {"cache": bool(self.methods), "solver": self.solver}
        return tuple(name for name in SKIPS if there.get(name, True))

    @property
    def most_full(self) -> int:
        """The most full steps that a cache is tried with, and steps of the solver: half of all."""
        return max(FEWEST_STEPS, self.steps // 2)

    def choose(self, chooser: Chooser) -> Stages:
        """One candidate's stages."""
        stages: Stages = {name: dict(options) for name, options in self.fixed.items()}
        if self.schemes and (scheme := chooser.suggest_categorical("quantize", [OFF, *self.schemes])) != OFF:
            stages["quantize"] = {"scheme": scheme}
        if self.sparse and chooser.suggest_categorical("sparse_attn", [OFF, "on"]) != OFF:
            low, high, step = KEEPS
            stages["sparse_attn"] = {"keep": round(chooser.suggest_float("keep", low, high, step=step), 2)}
        return stages | self._skipping(chooser)

    def _skipping(self, chooser: Chooser) -> Stages:
        how = chooser.suggest_categorical("skip", list(self.skips)) if len(self.skips) > 1 else OFF
        if how == "cache":
            method = chooser.suggest_categorical("cache", list(self.methods))
            count = chooser.suggest_int("count", FEWEST_STEPS, self.most_full, log=True)
            return {"cache": {"method": method, "count": count}}
        if how == "solver":
            return {"solver": {"steps": chooser.suggest_int("solver_steps", FEWEST_STEPS, self.most_full, log=True)}}
        return {}

    def first(self) -> list[dict[str, Any]]:
        """Candidates to begin with: each way to leave steps out at a tenth and a fifth of them, rounded and not."""
        found = []
        for scheme in [OFF, *self.schemes][:2]:
            for share in (10, 5):
                count = min(max(FEWEST_STEPS, self.steps // share), self.most_full)
                one = {"quantize": scheme} if self.schemes else {}
                one |= {"sparse_attn": OFF} if self.sparse else {}
                found += [one | {"skip": "cache", "cache": method, "count": count} for method in self.methods[:2]]
                found += [one | {"skip": "solver", "solver_steps": count}] if self.solver else []
        return found


def space_of(plan: Callable[[Stages], Plan], steps: int, fixed: Mapping[str, Any], small: bool = False) -> Space:
    """What the plan for a model keeps of all that could be tried.

    Args:
        plan: the plan of a stack with these stages.
        small: memory is limited, so that rounding which only saves memory is tried as well.
    """

    def kept(stage: str, options: dict[str, Any]) -> bool:
        if stage in fixed:
            return False
        try:
            planned = plan({**fixed, stage: options}).passes()
        except StackError:
            return False
        return any(p.stage == stage for p in planned)

    schemes = [*FASTER, *(SMALLER if small else ())]
    return Space(
        steps=steps,
        schemes=tuple(name for name in schemes if kept("quantize", {"scheme": name})),
        sparse=kept("sparse_attn", {"keep": 0.5}),
        methods=tuple(name for name in METHODS if kept("cache", {"method": name})),
        solver=kept("solver", {"steps": FEWEST_STEPS}),
        # Exact, and faster where the plan keeps it: every candidate has it.
        fixed={**fixed, **({EXACT: {}} if kept(EXACT, {}) else {})},
    )
