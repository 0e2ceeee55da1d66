"""A cache policy as data: schedule or gate x forecast x split x site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch

from ..compat.noise import Floor
from ..core.errors import StackError, choose
from ..core.facts import Facts
from ..core.ranks import ALONE, Ranks
from ..core.validate import shown
from ..models.schedule import SigmaSchedule
from . import gate_policies as gate_policies  # fills GATES
from . import sites as sites  # fills SITES
from .contract import GATES, SITES, GatePolicy, Site, suiting
from .forecast import Forecast
from .gates import Gate
from .learned import Learned
from .noise_schedule import Levels
from .options import Options, field_names, unknown
from .placement import ON_DEVICE, Placement
from .predictor import Predictor
from .schedule_policy import SchedulePolicy
from .schedules import Schedule
from .sites.block_range import OutputSite
from .splits import SPLITS, ChannelSplit, SplitPolicy

DTYPES = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
IMPLIED = ("spread", "corrected")  # what `changed` sets where other options ask for it
PARTS = ("schedule", "gate", "forecast", "split", "site")
KINDS: Mapping[str, Mapping[str, type[Any]]] = {"site": SITES, "gate": GATES, "split": SPLITS}
CLASSES: Mapping[str, type[Any]] = {
    "schedule": SchedulePolicy, "gate": GatePolicy, "forecast": Forecast, "split": SplitPolicy, "site": Site,
}  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True)
class Policy(Options):
    """When, what and where to cache.

    Attributes:
        schedule: which steps run in full.
        gate: decides instead of the schedule, once its warm-up is over; None leaves it to the schedule.
        forecast: what replaces a feature on a cached step.
        split: which part of a feature counts as principal.
        site: which feature is cached, with the site's own choices.
        corrected: full steps correct the error of the forecasts before them (`stack.caching.corrector`); for schedules
            and for gates that take no step back, with samplers that neither add noise nor clip.
        learned: corrections that `Stack.calibrate` has learned, see `stack.caching.learned`; used only with a corrector
            and a schedule.
        calibrated_for: the model, adapter and size that the cache was calibrated on, see `stack.compat.calibrated_for`.
        state_dtype: dtype in which features, differences and RFC's inputs are kept: "bfloat16", "float16", "float32";
            "" keeps the model's. float16 overflows above 65,504.
        max_bytes: limit in bytes on the state on the device per picture and guidance branch; 0 is no limit.
        noise: random error of features on full steps, as (sigma, relative error) pairs: forecasts are shrunk by it
            (`stack.compat.noise`). `Stack.noise_floor` measures it; () is none.

    Raises:
        StackError: a value outside its range, or parts that do not go together.
    """

    schedule: SchedulePolicy = field(default_factory=SchedulePolicy)
    gate: GatePolicy | None = None
    forecast: Forecast = field(default_factory=Forecast)
    split: SplitPolicy = field(default_factory=ChannelSplit)
    site: Site = field(default_factory=OutputSite)
    corrected: bool = False
    learned: Learned | None = None
    calibrated_for: tuple[str, ...] = ()
    state_dtype: str = ""
    max_bytes: int = 0
    noise: Floor = ()

    def check_values(self) -> None:
        if self.state_dtype not in DTYPES:
            raise choose("state_dtype of the cache", self.state_dtype, list(DTYPES))
        if not all(0 <= error < 1 for _, error in self.noise):
            raise StackError(f"noise must be (sigma, relative error) pairs with errors in [0, 1), got {self.noise}")
        if self.max_bytes < 0:
            raise StackError(f"max_bytes must be at least 0, got {self.max_bytes}: 0 is no limit")
        if self.gate is not None:
            self._validate_gate(self.gate)
        if self.banded and (not self.site.block_range or self.site.back_blocks):
            given = f"{self.site.name!r} and {self.site.back_blocks}"
            where = "site 'output' or 'residual' and back=0"
            raise StackError(f"split 'band' is of one stream: expected {where}, got {given}")
        if self.corrected and not self.correctable:
            given = f"gate {self.gate.name!r}" if self.gate else f"site {self.site.name!r}"
            raise StackError(f"a corrector cannot go with {given}: it needs to know which steps were cached")
        self.schedule_for(self.schedule.steps or 50)  # checks its own values

    def _validate_gate(self, gate: GatePolicy) -> None:
        if not gate.suits(self.site):
            where = " or ".join(map(repr, suiting(gate)))
            asked = gate.option or f"gate {gate.name!r}"
            raise StackError(f"{asked} cannot decide here: expected site {where}, got {self.site.name!r}")
        gate.validate(self)

    @classmethod
    def of(cls, **options: Any) -> Policy:
        """A policy from flat options: `Policy.of(site="per-module", order=2)`; see `changed`."""
        return cls().changed(**options)

    def changed(self, **options: Any) -> Policy:
        """This policy with other choices, named flat: those of its parts, and `site`, `gate` and `split` by name.

        Where a part is exchanged, the new one takes over the choices that both have. An interval or a warm-up makes the
        spread even, and a gate or a site that decides for every sample leaves the corrector out, unless those are named
        too.

        Raises:
            StackError: an option that this policy does not have, or a value of another type or outside its range.
        """
        given = dict(options)
        if {"interval", "warmup"} & set(given) and not {"spread", "count"} & set(given):
            given["spread"] = "even"  # who names an interval means these very steps
        parts: dict[str, Any] = {name: _taken(given, name, vars(self)[name]) for name in PARTS}
        kinds = {name: _kind(name, given.pop(name, None), parts[name]) for name in KINDS}
        made: dict[str, Any] = {}
        for name, now in parts.items():
            kind = kinds[name] if name in KINDS else type(now)
            if kind is None:
                made[name] = None
                continue
            names = field_names(kind)
            kept = {n: v for n, v in vars(now).items() if n in names} if now is not None else {}
            more = {n: given.pop(n) for n in names if n in given}
            made[name] = now if kind is type(now) and not more else kind(**{**kept, **more})
        own = {n: given.pop(n) for n in field_names(self) if n in given}
        for key in given:
            now = {**vars(self), **made}
            raise unknown(key, _having(now["site"], now["gate"], now["split"]), owners(), known_options())
        gate = made["gate"]
        corrected = self.corrected and made["site"].correctable and (gate is None or gate.correctable)
        return replace(self, **made, **{"corrected": corrected, **own})

    def options(self) -> dict[str, Any]:
        """Every choice, flat: what `changed` takes."""
        gate = self.gate.name if self.gate else ""
        flat: dict[str, Any] = {"site": self.site.name, "gate": gate, "split": self.split.name}
        for part in (vars(self)[name] for name in PARTS):
            flat |= vars(part) if part is not None else {}
        return flat | {f.name: vars(self)[f.name] for f in fields(self) if f.name not in PARTS}

    def differing(self, base: Policy) -> dict[str, Any]:
        """Options that make this policy of `base`."""
        theirs, defaults = base.options(), self._defaults()
        return {n: v for n, v in self.options().items() if v != theirs.get(n, defaults.get(n))}

    def _defaults(self) -> dict[str, Any]:
        return {f.name: f.default for name in PARTS if (part := vars(self)[name]) is not None for f in fields(part)}

    @property
    def scheduled(self) -> bool:
        """Whether a schedule decides, known before the run."""
        return self.gate is None and not self.site.decides

    @property
    def correctable(self) -> bool:
        """Whether full steps can put right the forecasts before them."""
        return self.site.correctable and (self.gate is None or self.gate.correctable)

    @property
    def banded(self) -> bool:
        """Whether its split looks at the grid of the tokens."""
        return self.split.needs_grid and self.forecast.splits

    @property
    def uncalibrated(self) -> Policy:
        """The same without a schedule or learned corrections of its own."""
        plain = replace(self.schedule, full_steps=(), full_at=(), segments=())
        return replace(self, schedule=plain, learned=None, calibrated_for=())

    def schedule_for(self, steps: int, sigmas: Sequence[float] = (), levels: Levels = ()) -> Schedule:
        """The schedule of a request with this many steps, at these noise levels if they are known.

        Args:
            levels: signal over noise of every step, see `SigmaSchedule.levels`.
        """
        order = self.forecast.effective_order
        return self.schedule.of(steps, self.site.even_schedule, sigmas, levels, order, self.corrected)

    def full_steps(self, facts: Facts) -> list[int]:
        """The full steps of a request as planned."""
        return sorted(self.schedule_for(facts.steps, (), facts.levels).full_steps(facts.steps))

    def new_predictor(
        self, placement: Placement = ON_DEVICE, grid: tuple[int, ...] = (), key: str = "", ranks: Ranks = ALONE
    ) -> Predictor:
        """A predictor for one feature of one request.

        Args:
            key: of the feature, where there are bases.
            grid: of the feature's tokens, where the policy is `banded`.
            ranks: the processes that share its tokens.
        """
        return Predictor(self.forecast, self.split.new(grid, key, ranks), DTYPES[self.state_dtype], placement, ranks)

    def new_gate(self, sigma_schedule: SigmaSchedule) -> Gate:
        """A gate for one sample of one request on this schedule."""
        assert self.gate is not None
        return self.gate.start(self, sigma_schedule)


def _taken(given: dict[str, Any], name: str, now: Any) -> Any:
    """A part that is given as an object, else the one there is."""
    if name not in given or (name in KINDS and isinstance(given[name], str)):
        return now
    part, kind = given.pop(name), CLASSES[name]
    if not isinstance(part, kind) and not (name == "gate" and part is None):
        named = f"one of {', '.join(sorted(KINDS[name]))}, or " if name in KINDS else ""
        choices = "" if name in KINDS else f"; try its choices by name: {', '.join(field_names(kind)[:3])}, ..."
        raise StackError(f"cache.{name}: expected {named}a {kind.__name__}, got {shown(part)}{choices}")
    return part


def _kind(name: str, wanted: str | None, now: Any) -> type[Any] | None:
    """The class of a part; None for no gate."""
    if wanted is None:
        return None if now is None else type(now)
    if name == "gate" and not wanted:
        return None
    if wanted not in KINDS[name]:
        raise choose(f"{name} of the cache", wanted, ["", *KINDS[name]] if name == "gate" else list(KINDS[name]))
    return KINDS[name][wanted]


def _having(site: Site, gate: GatePolicy | None, split: SplitPolicy) -> str:
    deciding = f"gate {gate.name!r}" if gate else "no gate"
    return f"site {site.name!r}, {deciding} and split {split.name!r}"


def owners() -> dict[str, list[str]]:
    """Every option of a site, gate or split, with those that have it in words."""
    found: dict[str, list[str]] = {}
    for part, kinds in KINDS.items():
        for name, kind in kinds.items():
            for key in field_names(kind):
                found.setdefault(key, []).append(f"{part} {name!r}")
    return found


def known_options() -> list[str]:
    """Every flat option there is."""
    plain = [n for kind in (Policy, SchedulePolicy, Forecast) for n in field_names(kind)]
    return sorted({*plain, *owners()} - {"schedule", "forecast"})
