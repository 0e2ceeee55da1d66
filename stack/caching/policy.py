"""A cache policy as data: schedule or gate x forecast x split x site. Every published method is a row of PRESETS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..compat.budget import ErrorBudget, weights_of
from ..compat.horizon import carried, uniform_levels
from ..compat.noise import Floor
from ..core.errors import StackError, choose
from ..models.schedule import SigmaSchedule
from .bases import Bases
from .fastcache.chi_square import ADAPTIVE
from .fastcache.choices import FastCacheChoices
from .forecast import Forecast, coordinate
from .gates import BudgetGate, DraftGate, Gate, MagnitudeGate, PolynomialGate, PrefixGate, SumGate
from .placement import ON_DEVICE, Placement
from .predictor import Predictor
from .schedules import Aligned, Interval, Mask, PowerSchedule, Schedule
from .splits import ChannelBasis, Split, TokenBand
from .tokenwise.cycles import Cycle, fill
from .tokenwise.tokens import TokenChoices

SITES = (
    "output", "residual", "blocks", "modules", "related", "attention", "fastcache", "tokens", "denoiser", "clean",
)  # fmt: skip
SPANS = ("output", "residual")
GATES = {
    "": SITES,
    **dict.fromkeys(("prefix", "polynomial", "magnitude", "draft"), SPANS),
    "sum": ("denoiser", "related"),
    "budget": SPANS,
}
SPLITS = ("channels", "band")
DTYPES = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Policy(FastCacheChoices, TokenChoices):
    """When, what and where to cache.

    Attributes:
        site: "output" (the last hidden state), "residual" (what the blocks between `front` and `back` add), "blocks"
            (each block's residual), "modules" (each module's output before its gate), "attention" (attention only),
            "related" (as modules, see `RelationalModules`), "denoiser" (what the whole model adds to the latent),
            "fastcache" (blocks and tokens on their own; the rest of its choices: `FastCacheChoices`),
            "tokens" (as modules, some tokens computed; the rest of its choices: `TokenChoices`).
        front, back: blocks that run on every step.
        corrected: full steps put right what the forecasts before them left (`stack.caching.corrector`); for schedules,
            behind samplers whose steps are plain sums.
        interval, warmup: full for `warmup` steps, then every `interval`-th; used while there is no `full_steps`.
        lean: as many full steps as interval and warmup make, but dense near the data: 2 is best on the flow models that
            ship (`PowerSchedule`); 0 leaves them evenly spread.
        switches: shares of the schedule at which that one is full whatever happens; see `Aligned`.
        full_steps, steps: a calibrated schedule, and the number of steps it was calibrated for.
        full_at: noise levels of those steps; () takes them as evenly spread in time. A request with other noise levels
            gets its full steps where these are (`stack.compat.horizon`).
        segments: a factor on the gains for each full step of that schedule, until the next one; empty is 1 throughout.
        calibrated_for: what was true of the stack when it was calibrated, see `stack.caching.calibrated_for`.
        order, gains, basis, level, smoothing, coordinate: see `Forecast`.
        split: "channels" (SVD-Cache) or "band" (FreqCa); energy, basis_life, cutoff: of the split.
        bases: found offline by `Stack.fit_bases`; None finds them in each request.
        gate: decides instead of the schedule; threshold, longest, retention, coefficients, ratios: of the gate.
        error_scale: of the "budget" gate, whose threshold is the relative error of the final sample that is allowed:
            measured error over the estimate, from `Stack.fit_gate`; below_error, measured_error: what the passes below
            the cache took of the whole stack's error, and the worst that the cache made of the rest, in that fit.
        state_dtype: what features, differences and RFC's inputs are kept in: "bfloat16", "float16", "float32"; "" as
            the model makes them. float16 ends at 65,504.
        max_bytes: the most state on the device per picture and guidance branch that the plan accepts, in bytes; 0 is no
            limit.
        noise: random error of what full steps produce, over sigma, as (sigma, relative error) pairs: forecasts are
            shrunk to what stands out of it (`stack.compat.noise`). `Stack.noise_floor` measures it; () is none.
        accept: (base, decay, floor) of SpeCa's bound on a draft's error, max(floor, base * decay^(step / steps)).

    Raises:
        StackError: a value outside its range.
    """

    site: str = "output"
    front: int = 0
    back: int = 0
    corrected: bool = False
    interval: int = 7
    warmup: int = 3
    lean: float = 0.0
    switches: tuple[float, ...] = ()
    full_steps: tuple[int, ...] = ()
    steps: int = 0
    full_at: tuple[float, ...] = ()
    segments: tuple[float, ...] = ()
    calibrated_for: tuple[str, ...] = ()
    order: int = 1
    gains: tuple[float, float] = (1.0, 0.0)
    basis: str = "newton"
    level: float = 0.0
    smoothing: float = 0.0
    coordinate: str = "time"
    split: str = "channels"
    energy: float = 0.85
    basis_life: str = "request"
    bases: Bases | None = None
    cutoff: float = 0.1
    gate: str = ""
    threshold: float = 0.0
    error_scale: float = 1.0
    below_error: float = 0.0
    measured_error: float = 0.0
    longest: int = 0
    retention: float = 0.2
    coefficients: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    state_dtype: str = ""
    max_bytes: int = 0
    noise: Floor = ()
    accept: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        FastCacheChoices.__post_init__(self)
        TokenChoices.__post_init__(self)
        for name, value, known in (
            ("site", self.site, SITES),
            ("gate", self.gate, GATES),
            ("split", self.split, SPLITS),
            ("state_dtype", self.state_dtype, DTYPES),
        ):
            if value not in known:
                raise choose(f"{name} of the cache", value, list(known))
        if not isinstance(self.full_steps, Sequence):
            hint = f"calibrate(..., full_steps={self.full_steps}) chooses them"
            raise StackError(f"full_steps: expected the steps to run in full, got {self.full_steps!r}; {hint}")
        if not 0 < self.energy <= 1:
            raise StackError(f"energy must be in (0, 1], got {self.energy}")
        if not all(0 <= error < 1 for _, error in self.noise):
            raise StackError(f"noise must be (sigma, relative error) pairs with errors in [0, 1), got {self.noise}")
        if self.max_bytes < 0:
            raise StackError(f"max_bytes must be at least 0, got {self.max_bytes}: 0 is no limit")
        if self.lean < 0:
            raise StackError(f"lean must be at least 0, got {self.lean}: 2 is dense near the data, 0 is even")
        if self.front < 0 or self.back < 0:
            raise StackError(f"front and back must be at least 0, got {self.front} and {self.back}")
        if self.site not in GATES[self.gate]:
            where = " or ".join(map(repr, GATES[self.gate]))
            raise StackError(f"gate {self.gate!r} cannot decide here: expected site {where}, got {self.site!r}")
        if self.gate == "budget" and (self.back or self.threshold <= 0):
            given = f"back={self.back}, max_error={self.threshold:g}"
            raise StackError(f"an error budget needs back=0 and a relative error above 0, such as 0.02: got {given}")
        if bool(self.cycle) != (self.site == "tokens"):
            raise StackError(f"site 'tokens' needs a cycle, no other has one: got {self.cycle!r} at {self.site!r}")
        if self.full_at and len(self.full_at) != len(self.full_steps):
            raise StackError(f"expected a noise level per full step, {len(self.full_steps)}, got {len(self.full_at)}")
        if self.segments and len(self.segments) != len(self.full_steps):
            raise StackError(f"expected a factor per full step, {len(self.full_steps)}, got {len(self.segments)}")
        if self.banded and (self.site not in SPANS or self.back):
            where = "site 'output' or 'residual' and back=0"
            raise StackError(f"split 'band' is of one stream: expected {where}, got {self.site!r} and {self.back}")
        if self.corrected and not self.correctable:
            given = f"gate {self.gate!r}" if self.gate else f"site {self.site!r}"
            raise StackError(f"a corrector needs a schedule that holds for the whole batch, got {given}")
        if self.accept and not self.back:
            raise StackError("drafts are checked on a back block: expected back=1 or more, got 0")
        # Forecast, schedule and split each check their own values.
        _ = self.forecast, self.schedule(self.steps or 50), self.new_split()

    @property
    def correctable(self) -> bool:
        """Whether a schedule decides, for the whole batch."""
        return not self.gate and self.site not in ("fastcache", "denoiser")

    @property
    def forecast(self) -> Forecast:
        """What stands in for a feature."""
        return Forecast(self.order, self.gains, self.basis, self.level, self.smoothing, self.coordinate)

    def schedule(self, steps: int, sigmas: Sequence[float] = ()) -> Schedule:
        """The calibrated full steps, carried to other noise levels or another number of steps; else the interval's.

        Args:
            sigmas: noise levels of the request; () where they are not known yet.
        """
        if not self.full_steps:
            even: Schedule = (
                Cycle(self.interval, self.warmup, self.cycle, self.pace)
                if self.cycle
                else Interval(self.interval, self.warmup)
            )
            even = PowerSchedule(even, self.lean) if self.lean else even
            return Aligned(even, self.switches) if self.switches else even
        if steps == self.steps and not (sigmas and self.full_at):
            return Mask(tuple(self.full_steps), self.steps)
        at, levels = self._levels(steps, sigmas)
        return Mask(carried(at, levels), steps)

    def _levels(self, steps: int, sigmas: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        """Where the calibrated full steps are, and the steps of a request, on one scale."""
        if self.full_at and sigmas:
            return self.full_at, sigmas
        return uniform_levels(self.full_steps, self.steps), uniform_levels(range(steps), steps)

    def gain(self, step: int, steps: int, sigmas: Sequence[float] = ()) -> float:
        """The factor on the gains from this full step to the next."""
        if not self.segments:
            return 1.0
        at, levels = self._levels(steps, sigmas)
        return self.segments[min(range(len(at)), key=lambda i: abs(at[i] - levels[step]))]

    def kinds(self, steps: int) -> str:
        """What each step of a token-wise cache is, see `stack.caching.tokenwise.cycles`."""
        schedule = self.schedule(steps)
        if isinstance(schedule, Cycle):
            return schedule.kinds(steps)
        return fill(schedule.full_steps(steps), steps, self.cycle)

    @property
    def banded(self) -> bool:
        """Whether its split looks at the grid of the tokens."""
        return self.split == "band" and self.forecast.splits

    def new_predictor(self, placement: Placement = ON_DEVICE, grid: tuple[int, ...] = (), key: str = "") -> Predictor:
        """A predictor for one feature of one request.

        Args:
            key: of the feature, where there are bases.
            grid: of the feature's tokens, where the policy is `banded`.
        """
        return Predictor(self.forecast, self.new_split(grid, key), DTYPES[self.state_dtype], placement)

    def new_split(self, grid: tuple[int, ...] = (), key: str = "") -> Split:
        """A split for one feature of one request."""
        if self.split == "band":
            return TokenBand(self.cutoff, grid)
        return ChannelBasis(self.energy, self.basis_life, self.bases.of(key) if self.bases and key else None)

    def new_gate(self, sigma_schedule: SigmaSchedule) -> Gate:
        """A gate for one sample of one request on this schedule."""
        if self.gate == "budget":
            checked = max(self.warmup, self.forecast.effective_order + 2)
            return BudgetGate(self._budget(sigma_schedule), checked, self.longest)
        if self.gate == "prefix":
            return PrefixGate(self.threshold, self.warmup, self.longest)
        if self.gate == "polynomial":
            return PolynomialGate(self.threshold, self.coefficients or (1.0, 0.0))
        if self.gate == "magnitude":
            return MagnitudeGate(self.threshold, self.ratios, self.longest, self.retention)
        if self.gate == "sum":
            around = self.site == "denoiser"
            return SumGate(self.threshold, self.warmup, self.longest, slope=None if around else 1.0, ends=around)
        return DraftGate(self.warmup, self.longest)

    def _budget(self, sigma_schedule: SigmaSchedule) -> ErrorBudget:
        name, sigmas = self.coordinate, sigma_schedule.sigmas
        xs = [coordinate(name, step, sigma_schedule.time(sigma), sigma) for step, sigma in enumerate(sigmas)]
        return ErrorBudget(self.threshold, xs, weights_of(sigmas), self.forecast.effective_order, self.error_scale)

    def accepts(self, step: int, steps: int) -> float:
        """The largest relative error of a draft's check on this step."""
        assert self.accept is not None
        base, decay, floor = self.accept
        return max(floor, base * decay ** (step / steps))


REUSE, WHOLE = (0.0, 0.0), (1.0, 1.0)

PRESETS: dict[str, Policy] = {
    # The three this project is about. SVD-Cache: arXiv 2601.07396.
    "svd": Policy(),
    "svd-printed": Policy(site="blocks", level=0.9, order=0, coordinate="step"),
    "svd-swapped": Policy(site="blocks", level=0.1, order=0, coordinate="step"),
    "svd-blocks": Policy(site="blocks", smoothing=0.5),
    # Ours: data prediction with a corrector, on the steps of the model's own schedule.
    "predictor-corrector": Policy(site="clean", gains=WHOLE, corrected=True, lean=2.0),
    # Rivals.
    "fora": Policy(site="modules", order=0, gains=REUSE, interval=3, warmup=1),
    "reuse": Policy(order=0, gains=REUSE),
    "taylorseer": Policy(site="modules", order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "taylorseer-lite": Policy(order=2, gains=WHOLE, basis="taylor", coordinate="step"),
    "hicache": Policy(site="modules", order=2, gains=WHOLE, basis="hermite", coordinate="step"),
    "freqca": Policy(order=2, gains=(0.0, 1.0), basis="hermite", coordinate="step", split="band"),
    "first-block": Policy(site="residual", front=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=1),
    "dbcache": Policy(site="residual", front=2, back=1, order=0, gains=REUSE, gate="prefix", threshold=0.08, warmup=8),
    "dbcache-taylor": Policy(
        site="residual", front=1, gains=WHOLE, basis="taylor", coordinate="step", gate="prefix", threshold=0.2, warmup=8
    ),
    "teacache": Policy(site="residual", order=0, gains=REUSE, gate="polynomial", threshold=0.4),
    "magcache": Policy(site="residual", order=0, gains=REUSE, gate="magnitude", threshold=0.06, longest=3),
    "speca": Policy(
        site="output", back=1, order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="draft", longest=8,
        accept=(0.3, 0.3, 0.02),
    ),
    # Around the whole model, as published for HunyuanVideo; RFC (arXiv 2602.19506) with a threshold of this project.
    "easycache": Policy(site="denoiser", order=0, gains=REUSE, gate="sum", threshold=0.025, warmup=5),
    "rfc": Policy(
        site="related", order=2, gains=WHOLE, basis="taylor", coordinate="step", gate="sum", threshold=0.3, warmup=3
    ),
    "pab": Policy(site="attention", order=0, gains=REUSE, interval=2, warmup=6),
    # FastCache (arXiv 2505.20353), whole and module by module; carry="map" is what it publishes.
    "fastcache": Policy(site="fastcache", carry="moved", order=0, threshold=0.05, adaptive=ADAPTIVE),
    "fastcache-gate": Policy(
        site="fastcache", carry="moved", order=0, threshold=0.05, adaptive=ADAPTIVE, parts=("gate",)
    ),
    "fastcache-tokens": Policy(site="fastcache", carry="moved", order=0, parts=("tokens",)),
    "fastcache-merge": Policy(site="fastcache", order=0, parts=("merge",)),
    # Token-wise, with the published settings: ToCa's for FLUX, DuCa's for HunyuanVideo (random) and for DiT with DDIM.
    "toca": Policy(site="tokens", order=0, gains=REUSE, interval=4, cycle="c", budget="flux"),
    "duca": Policy(site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux"),
    "duca-values": Policy(
        site="tokens", order=0, gains=REUSE, interval=5, cycle="ca", budget="flux", select="values"
    ),
    "duca-dit": Policy(
        site="tokens", order=0, gains=REUSE, interval=3, warmup=1, cycle="ca", pace="dit", ratio=0.05,
        budget="dit-ddim", grid=(2, 0.8),
    ),
}  # fmt: skip
