"""Linears that were converted before their pass is applied, since that took calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..core.facts import Facts


@dataclass(frozen=True)
class Prepared:
    """One converted linear.

    Attributes:
        path: in the denoiser.
        name: of the `Candidate` that it is.
    """

    path: str
    name: str
    module: nn.Module = field(repr=False)


@dataclass(frozen=True)
class Preparation:
    """A mix of schemes that was calibrated and measured.

    Attributes:
        linears: those that no backend converts on its own.
        adapters, device: in whose weights, and where, they were made.
        bytes: of all linears of the mix.
        expected, measured: relative error of the denoiser's output on held-out samples of the recorded calls.
    """

    linears: tuple[Prepared, ...]
    adapters: tuple[str, ...]
    device: str
    bytes: int
    expected: float
    measured: float

    def stale(self, facts: Facts) -> str:
        """Why it does not belong to a model with these facts; '' where it does."""
        if facts.adapters != self.adapters:
            names = ["no adapter" if not each else " and ".join(each) for each in (self.adapters, facts.adapters)]
            return f"its mix was made for weights with {names[0]}, these have {names[1]}"
        if facts.machine.device != self.device:
            return f"its mix was made on {self.device}, the model is on {facts.machine.device}"
        return ""

    def describe(self) -> str:
        """In words, for `explain()`."""
        names = [each.name for each in self.linears]
        kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no linears"
        return (
            f"calibrated: {kinds}; {self.bytes / 1e6:.2f} MB in all, relative error of the output expected "
            f"{self.expected:.2%}, measured {self.measured:.2%}"
        )
