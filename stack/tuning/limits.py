"""What a tuned stack must keep within, and how far a measured one is from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..core.errors import StackError
from ..core.validate import check_fields
from .figures import Figures

HOPELESS = 0.1  # excess at which a candidate is given up: 4 dB below a limit of 40
KEPT_TO = 0.1  # dB: the median of a dozen other pictures differs by more
WORST = 1e6  # how far off a stack is that has no figure at all


@dataclass(frozen=True)
class Limits:
    """Limits on one stack; 0 is not asked for. With one on quality the fastest stack is looked for, else the best.

    Attributes:
        min_psnr: least PSNR in dB against the model without a stack, median over prompts, kept to a tenth of a dB.
        max_lpips: greatest perceptual distance, median over prompts; see `stack.measure.perceptual`.
        max_error: greatest relative error of the final latents, median over prompts. Pictures are not made then.
        max_seconds: longest time of one picture.
        max_memory: highest peak in GB (10^9 bytes) while one picture is made; see `stack.measure.memory`.

    Raises:
        StackError: no limit, a negative one, or `max_error` beside a limit that needs pictures.
    """

    min_psnr: float = 0.0
    max_lpips: float = 0.0
    max_error: float = 0.0
    max_seconds: float = 0.0
    max_memory: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "limits")
        given = self.given
        if not given:
            names = ", ".join(f.name for f in fields(self))
            raise StackError(f"expected a limit to tune for, got none: give one of {names}")
        if wrong := [name for name, value in given.items() if not 0 < value < math.inf]:
            raise StackError(f"{wrong[0]} must be positive, got {given[wrong[0]]:g}")
        if self.max_error and (self.min_psnr or self.max_lpips):
            raise StackError("max_error is of latents, min_psnr and max_lpips are of pictures: expected one kind")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are asked for."""
        return {name: value for name, value in vars(self).items() if value}

    @property
    def words(self) -> str:
        """The limits as they were given."""
        return ", ".join(f"{name}={value:g}" for name, value in self.given.items())

    @property
    def on_quality(self) -> bool:
        """Whether quality is limited, and so time is what is made least."""
        return bool(self.min_psnr or self.max_lpips or self.max_error)

    @property
    def output(self) -> str:
        """What a run has to return: "pt" for pictures, "latent" for latents."""
        return "latent" if self.max_error else "pt"

    def excess(self, figures: Figures) -> float:
        """How far beyond the limits, as a sum of relative shares; 0 within all of them."""
        most = [
            (self.max_lpips, figures.lpips), (self.max_error, figures.error), (self.max_seconds, figures.seconds),
            (self.max_memory, figures.gigabytes),
        ]  # fmt: skip
        over = [WORST if value is None else value / limit - 1 for limit, value in most if limit]
        if self.min_psnr:
            over.append(WORST if figures.psnr is None else 1 - (figures.psnr + KEPT_TO) / self.min_psnr)
        return sum(max(0.0, one) if math.isfinite(one) else WORST for one in over)

    def cost(self, figures: Figures) -> float:
        """What is made least: the time relative to the model without a stack, or how unlike the pictures are."""
        if self.on_quality:
            return -math.log(figures.speedup)
        return WORST if figures.psnr is None else -figures.psnr

    def hopeless(self, figures: Figures) -> bool:
        """Whether further prompts are not worth their time: far beyond a limit already, or slower than no stack."""
        return self.excess(figures) > HOPELESS or (self.on_quality and figures.speedup < 1)
