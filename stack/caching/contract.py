"""What a site and a gate declare. Planning, memory and calibration ask these objects and never compare their names.

A new site is one file: a frozen dataclass derived from `Site`, decorated with `register_site`. A gate is the same with
`GatePolicy` and `register_gate`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from torch import nn

from ..compat.noise import Floor
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Finding
from ..models.layout import Wiring
from ..models.schedule import SigmaSchedule
from ..runtime.call import Interceptor
from ..runtime.target import Target
from .controller import CacheController
from .fitted import Fitted
from .forecast import Forecast
from .gates import Gate
from .noise_schedule import Levels
from .options import Options
from .schedule_policy import SchedulePolicy
from .schedules import Interval, Schedule


class PolicyLike(Protocol):
    """What sites and gates read of the policy that they are a part of."""

    @property
    def schedule(self) -> SchedulePolicy: ...
    @property
    def gate(self) -> GatePolicy | None: ...
    @property
    def forecast(self) -> Forecast: ...
    @property
    def site(self) -> Site: ...
    @property
    def state_dtype(self) -> str: ...
    @property
    def noise(self) -> Floor: ...
    @property
    def corrected(self) -> bool: ...
    def schedule_for(self, steps: int, sigmas: Sequence[float] = (), levels: Levels = ()) -> Schedule: ...


@dataclass(frozen=True)
class SiteState:
    """What a site holds per picture and guidance branch.

    Attributes:
        units: tokens of every predicted feature of the model's width; those of a block or module together.
        predicted: numbers in predicted features of another width.
        kept: further numbers, in the dtype of the model's features.
        stored: further numbers, in the dtype of the state.
    """

    units: tuple[tuple[int, ...], ...] = ()
    predicted: int = 0
    kept: int = 0
    stored: int = 0

    @property
    def features(self) -> list[int]:
        """Tokens of every predicted feature of the model's width."""
        return [tokens for unit in self.units for tokens in unit]


class Installs(Protocol):
    """A site on a model.

    Attributes:
        interceptors: what intercepts calls of the denoiser, the outermost first; () where it works on blocks alone.
    """

    interceptors: tuple[Interceptor, ...]

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Wrap what it has to; returns the number of places."""
        ...


class BeforeBlocks:
    """A site that decides before the model is called, and works whichever blocks are."""


@dataclass(frozen=True)
class Site(Options):
    """Where a cache stands. Its fields are the site's own choices.

    Attributes:
        name: as options and recipes have it.
        words: what is cached there, for `explain()`.
        gates: names of gates that suit it, beside those that name the site themselves.
        noise_feature: measured feature that is nearest to what it keeps: "last hidden state", "whole residual",
            "output" (of the denoiser) or "blocks" (the mean over what each block adds).
        correctable: a schedule decides there for the whole batch, so that a corrector goes with it.
        calibrates_corrector: calibration tries a corrector there.
        divisible: it keeps features of every block or module, which can lie on the host one by one.
        part: what `divisible` state is divided into, in words.
        decides: it decides by itself, block by block: neither schedule nor gate does.
        per_sample: every sample has a cache slot of its own although there is no gate.
        block_range: it caches a range of blocks; a split by token band works there, and calibration can rehearse it.
        forecasts_x0: it forecasts the estimate of x0, and calibration records that.
        measures_slope: it measures what a change of its input does to its output, see `SumPolicy`.
        partial_depth: some blocks can run on its cached steps, so that it may be kept on schedules of few steps.
        all_tokens: it has to see all tokens of a block.
        needs: what a model's wiring must have for it, as `Wiring.lacks` names it.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    gates: ClassVar[tuple[str, ...]] = ()
    noise_feature: ClassVar[str] = "output"
    correctable: ClassVar[bool] = True
    calibrates_corrector: ClassVar[bool] = False
    divisible: ClassVar[bool] = False
    part: ClassVar[str] = "module"
    decides: ClassVar[bool] = False
    per_sample: ClassVar[bool] = False
    block_range: ClassVar[bool] = False
    forecasts_x0: ClassVar[bool] = False
    measures_slope: ClassVar[bool] = False
    partial_depth: ClassVar[bool] = False
    all_tokens: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("blocks",)

    def wants(self, policy: PolicyLike) -> tuple[str, ...]:
        """What a model's wiring must have under this policy."""
        return (*self.needs, *(policy.gate.needs if policy.gate else ()))

    @property
    def front_blocks(self) -> int:
        """Blocks in front that run on every step."""
        return 0

    @property
    def back_blocks(self) -> int:
        """Blocks at the end that run on every step."""
        return 0

    @property
    def bound(self) -> str:
        """What a site that `decides` decides by, in words with its figure."""
        return "no threshold"

    @property
    def fitted(self) -> Mapping[str, Fitted | None]:
        """What was fitted on a model for it, by name in words."""
        return {}

    def even_schedule(self, interval: int, warmup: int) -> Schedule:
        """The schedule of a cache that was not calibrated."""
        return Interval(interval, warmup)

    def lines(self, policy: PolicyLike, facts: Facts) -> list[str]:
        """Further lines for `explain()`; all of them, beside the method's name and the size, where it `decides`."""
        return []

    def refuses(self, facts: Facts, stage: str) -> list[Finding]:
        """What the model or its sampler lacks (fatal), and notes on the site's own choices."""
        return []

    def clashes(self, facts: Facts, stage: str) -> list[Finding]:
        """Notes on the stack below a cache that will run."""
        return []

    def threshold_scaled(self, factor: float) -> Site | None:
        """The site with its own threshold multiplied, for calibration; None where it has none."""
        return None

    @abstractmethod
    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        """What it holds; None where the facts lack a size that it needs."""

    @abstractmethod
    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        """The site for one model, not installed yet."""


@dataclass(frozen=True)
class GatePolicy(Options):
    """What decides step by step instead of a schedule. Its fields are the gate's own choices.

    Attributes:
        name: as options and recipes have it.
        looks_at: what it decides by, in words.
        sites: names of sites that it suits, beside those that name the gate themselves.
        reads_per_step: numbers that it waits for on every step.
        fitted_by: what `Stack.fit_gate` measures for it, in words; "" for nothing.
        self_timed: its threshold is an error that is measured in every request, and holds on any stack.
        option: the option that stands for it; "" where it is asked for by name only.
        keeps_probe: it holds a tensor of the output stream's size to compare with.
        correctable: full steps can put right the forecasts before them: not where a step is taken back.
        needs: what a model's wiring must have for it, as `Wiring.lacks` names it.
    """

    name: ClassVar[str]
    looks_at: ClassVar[str] = ""
    sites: ClassVar[tuple[str, ...]] = ()
    reads_per_step: ClassVar[int] = 1
    fitted_by: ClassVar[str] = ""
    self_timed: ClassVar[bool] = False
    option: ClassVar[str] = ""
    keeps_probe: ClassVar[bool] = False
    correctable: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def suits(self, site: Site) -> bool:
        """Whether it can decide at a site."""
        return site.name in self.sites or self.name in site.gates

    @property
    def bound(self) -> str:
        """What it decides by, in words with its figure."""
        return "no threshold"

    @property
    def words(self) -> str:
        """How steps are decided, for `explain()`."""
        by = f"{self.looks_at} (gate {self.name!r})" if self.looks_at else f"gate {self.name!r}"
        return f"steps decided one by one by {by}, {self.bound}: saving depends on the picture"

    @property
    def fitted(self) -> bool:
        """Whether what has to be measured has been."""
        return False

    def unfitted(self, method: str, stage: str) -> list[Finding]:
        """What has to be measured first."""
        return []

    def validate(self, policy: PolicyLike) -> None:
        """Check it against the rest of the policy.

        Raises:
            StackError: they do not go together.
        """

    @abstractmethod
    def loosened(self, factor: float) -> GatePolicy:
        """The gate with its threshold multiplied, for calibration."""

    @abstractmethod
    def start(self, policy: PolicyLike, sigma_schedule: SigmaSchedule) -> Gate:
        """The gate of one sample of one request."""


S = TypeVar("S", bound=Site)
G = TypeVar("G", bound=GatePolicy)
SITES: dict[str, type[Site]] = {}
GATES: dict[str, type[GatePolicy]] = {}


def register_site(site: type[S]) -> type[S]:
    """Let options and recipes name a site."""
    SITES[site.name] = site
    return site


def register_gate(gate: type[G]) -> type[G]:
    """Let options and recipes name a gate."""
    GATES[gate.name] = gate
    return gate


def suiting(gate: GatePolicy) -> Sequence[str]:
    """Names of the sites that a gate can decide at."""
    return [name for name, site in SITES.items() if name in gate.sites or gate.name in site.gates]
