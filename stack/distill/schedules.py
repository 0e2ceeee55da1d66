"""Noise levels of few-step schedules. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..core.errors import StackError, choose
from ..models.schedule import TRAINED, check_shift, uniform

KINDS = {
    "scheduler": (),
    "shift": ("shift",),
    "dmd": ("timesteps", "shift"),
    "sigmas": ("sigmas",),
    "timesteps": ("timesteps",),
}


def constant_shift(steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of `steps` steps at a shift that depends neither on the picture's size nor on its tokens.

    u = 1, 1 - 1/S, ..., 1/S and sigma = s u / (1 + (s - 1) u). It is what diffusers' flow schedulers make of
    `base_shift = max_shift = ln s`, exponential, with no terminal stretch (Qwen-Image-Lightning).
    """
    return uniform(steps, shift).sigmas


def dmd_list(timesteps: Sequence[float], shift: float) -> tuple[float, ...]:
    """Noise levels of a list of time steps on the shifted grid of distribution matching distillation.

    The grid is g_i = 1 - i / 1000, sigma_i = s g_i / (1 + (s - 1) g_i), and a listed step t picks i = 1000 - t
    (Yin et al. 2024, arXiv:2405.14867, as the Self-Forcing family runs it).

    Args:
        timesteps: falling, in (0, 1000].
    """
    return tuple(shift * g / (1 + (shift - 1) * g) for g in (t / TRAINED for t in timesteps))


@dataclass(frozen=True)
class AdapterSchedule:
    """How an adapter's noise levels are found.

    Attributes:
        kind: "scheduler" (whatever the card's scheduler, or else the base's, makes of the number of steps), "shift"
            (`constant_shift`), "dmd" (`dmd_list`), "sigmas" or "timesteps" (literal, largest first; t = 1000 sigma).
        values: the literal list; () for the first two kinds.
        shift: of the kinds "shift" and "dmd".

    Raises:
        StackError: an unknown kind, a list that does not fall within (0, 1], or a shift that leaves no levels.
    """

    kind: str = "scheduler"
    values: tuple[float, ...] = ()
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise choose("kind of schedule", self.kind, list(KINDS))
        check_shift(self.shift)
        listed = {"sigmas", "timesteps"} & set(KINDS[self.kind])
        if bool(listed) != bool(self.values):
            raise StackError(f"schedule {self.kind!r} expects {'a list' if listed else 'no list'}, got {self.values}")
        top = 1.0 if self.kind == "sigmas" else TRAINED
        falling = all(a > b for a, b in pairwise(self.values))
        if not falling or not all(0 < v <= top for v in self.values):
            raise StackError(f"a schedule must fall, within (0, {top:g}], got {list(self.values)}")

    @property
    def count(self) -> int:
        """The only number of steps it can have; 0 for any."""
        return len(self.values)

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """Noise levels, largest first and without the final 0; () where the scheduler decides."""
        if self.kind == "shift":
            return constant_shift(steps, self.shift)
        if self.kind == "dmd":
            return dmd_list(self.values, self.shift)
        if self.kind == "timesteps":
            return tuple(t / TRAINED for t in self.values)
        return self.values

    def words(self) -> str:
        """For tables and plans."""
        values = ", ".join(f"{v:g}" for v in self.values)
        return {
            "scheduler": "the scheduler's own",
            "shift": f"constant shift {self.shift:g}",
            "dmd": f"steps {values} at shift {self.shift:g}",
            "sigmas": f"sigmas {values}",
            "timesteps": f"timesteps {values}",
        }[self.kind]
