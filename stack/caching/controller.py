"""Runs a cache on a model: decides each step by schedule or gate, keeps predictors per guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..compat.noise import Floor, floor_at
from ..compat.rules.state import NOT_A_NUMBER, OTHER_CONDITIONS
from ..core.errors import StackError
from ..core.ranks import ALONE, Ranks
from ..models.schedule import SigmaSchedule
from ..runtime.call import holds_collections
from ..runtime.report import Journal
from ..runtime.stamp import Conditions, Stamp
from ..runtime.step import ALL, CACHED, FULL, NO_BLOCK, PARTIAL, Computed, StepContext
from ..runtime.step_clock import Clock
from .debts import Debts
from .forecast import coordinate
from .gates import BudgetGate, Gate
from .guard import FURTHEST, ExtrapolationGuard
from .measurements import Measurements
from .noise_schedule import Levels
from .placement import Place, Placement, all_on_device
from .predictor import Predictor
from .schedules import Schedule

AROUND = (
    "blocks were called outside of a call of the denoiser that its stack sees: was its forward replaced after apply()? "
    "undo() the stack and apply it again"
)


@dataclass
class CacheSlot:
    """What is decided and predicted together: a whole batch under a fixed schedule, one sample under a gate.

    Samples of a batch must not share a gate: the picture of one would depend on the others.
    """

    predictors: dict[str, Predictor] = field(default_factory=dict)
    gate: Gate | None = None
    reference: torch.Tensor | None = None  # the probe that the next one is compared with
    computed: dict[str, Hashable] = field(default_factory=dict)  # how the newest feature was, see `StepContext`
    run: int = 0  # cached steps since the last full one
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # what a site holds besides predictors
    debts: Debts = field(default_factory=Debts)  # what a corrector holds
    guard: ExtrapolationGuard = field(default_factory=ExtrapolationGuard)

    def clear(self) -> None:
        """Forget what was stored, not what was decided."""
        self.predictors.clear()
        self.kept.clear()
        self.debts.clear()
        self.guard.clear()
        if isinstance(self.gate, BudgetGate):
            self.gate.spending.forget()


@dataclass
class _Held:
    stamp: Stamp
    slots: list[CacheSlot]


@dataclass
class CacheController:
    """State of one cache on one model.

    Attributes:
        schedule_for: the schedule of a request with this many steps at these noise levels (see `ByNoise`); not asked
            where there is a gate.
        new_predictor: makes the predictor of a feature, by its key and where its state is to lie.
        conditions: asked at every step; a change drops the state.
        new_gate: makes a gate for a request; None for a fixed schedule.
        gain_at: (step, steps, noise levels) to the factor on the gains from a full step to the next.
        coordinate: of all forecasts, see `Forecast.coordinate`.
        per_sample: a slot for every sample although there is no gate.
        noise: random error of what full steps produce, over sigma; empty takes them as exact.
        place: where the state of a slot's next feature lies, by the number of those it has, and their device.
        given: the arguments of the current denoiser call, by name.
        residuals: names of those that are added between blocks, see `Wiring.residuals`.
        whole: a batch can only run as a whole.
        bridges: whether differences go on where the way of computing changes, see `StepContext.compute_mode`: good
            where full steps on both sides of it lie far apart. Next to each other, a forecast would multiply the jump.
        drafts: whether steps are taken back that fail their check.
        ranks: the processes that share the tokens of the blocks; they decide alike.
        figures: what a site adds to the report.
        shared: what a site holds for all branches of the request.
        dropped: states dropped within a request: their stamp no longer fitted, or they were not finite.
        rolled_back: steps whose drafts failed their check.
        refused: steps that ran in full because their forecast would have gone too far.
        cached_work: what a cached step still computes, set by the site.
        measurements: errors that full steps measured, on their way to the gates that decide by them.
        now: the current denoiser call, once it has begun.
        slots: those of its branch.
        x: its coordinate.
    """

    clock: Clock
    journal: Journal
    schedule_for: Callable[[int, Sequence[float], Levels], Schedule]
    new_predictor: Callable[[str, Placement], Predictor]
    conditions: Callable[[], Conditions]
    new_gate: Callable[[SigmaSchedule], Gate] | None = None
    gain_at: Callable[[int, int, Sequence[float]], float] = lambda step, steps, sigmas: 1.0
    coordinate: str = "time"
    per_sample: bool = False
    noise: Floor = ()
    place: Place = all_on_device
    given: Callable[[], Mapping[str, Any]] = dict
    residuals: tuple[str, ...] = ()
    whole: bool = False
    bridges: bool = False
    drafts: bool = False
    ranks: Ranks = ALONE
    figures: dict[str, float] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    dropped: int = 0
    rolled_back: int = 0
    refused: int = 0
    cached_work: Computed = NO_BLOCK
    measurements: Measurements = field(default_factory=Measurements)
    _held: dict[str, _Held] = field(default_factory=dict)
    _norms: Measurements = field(default_factory=Measurements)
    _planned: tuple[SigmaSchedule, frozenset[int]] | None = None
    now: StepContext = field(init=False)
    slots: list[CacheSlot] = field(default_factory=list)
    x: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory of the device that is held, in bytes."""
        slots = self._all_slots
        probes = sum(slot.reference.nbytes for slot in slots if slot.reference is not None)
        kept = sum(tensor.nbytes for slot in slots for tensor in slot.kept.values())
        kept += sum(slot.debts.bytes for slot in slots)
        shared = sum(tensor.nbytes for tensor in self.shared.values())
        return probes + kept + shared + sum(p.bytes for slot in slots for p in slot.predictors.values())

    @property
    def host_bytes(self) -> int:
        """Memory of the host that is held because the device's is short, in bytes."""
        return sum(p.host_bytes for slot in self._all_slots for p in slot.predictors.values())

    @property
    def _all_slots(self) -> list[CacheSlot]:
        return [slot for held in self._held.values() for slot in held.slots]

    @property
    def estimates(self) -> dict[str, float]:
        """The estimated error of the final sample, of the worst sample and branch, where there is a budget."""
        self.measurements.poll(wait=True)
        found = [slot.gate.spending.estimate for slot in self._all_slots if isinstance(slot.gate, BudgetGate)]
        return {"estimated_error": max(found)} if found else {}

    def reset(self) -> None:
        """Forget every request."""
        self._held.clear()
        self.slots = []
        self._norms.clear()
        self.measurements.clear()
        self.shared.clear()

    def empty(self) -> None:
        """Drop what was stored in this request, so that the next decision is for full steps; gates go on counting."""
        for slot in self._all_slots:
            slot.clear()
            slot.reference, slot.run = None, 0
        self.shared.clear()

    @property
    def probe(self) -> str:
        """What the gate wants to see before it decides; empty where nothing is needed."""
        slot = self.slots[0]
        return slot.gate.probe if slot.gate else ""

    def begin(self, tokens: torch.Tensor) -> None:
        """A denoiser call reaches the blocks with these tokens (B, N, D)."""
        context, schedule = self.clock.context, self.clock.sigma_schedule
        if context is None or not self.clock.running:
            raise StackError(AROUND)
        self.now, self.x = context, context.time
        if self.coordinate != "time":
            self.x = coordinate(self.coordinate, context.step, context.time, context.sigma)
        shape, conditions = tuple(tokens.shape), self.conditions()
        tensor = (shape, tokens.dtype, tokens.device)
        stamp = Stamp(context.request, context.branch, conditions, schedule, *tensor, context.joined)
        held = self._held.get(context.branch)
        if held is None or held.stamp != stamp:
            held = self._renewed(context, stamp, held)
        self.slots = held.slots

    def decide(
        self,
        probe: torch.Tensor | None = None,
        partial: bool = False,
        changes: Sequence[float | None] | None = None,
        together: bool = False,
    ) -> list[bool]:
        """Whether each slot is cached on this step. Called once per step, with the gate's probe if it has one.

        Args:
            partial: a cached step still computes something.
            changes: the change each slot's gate decides on, where the site measures it and hands over no probe.
            together: the batch can only run as a whole, so it is cached only where every slot would be.
        """
        slots, outcome = self.slots, self.now.outcome
        self.drop_nonfinite()
        skips = self._scheduled() if self.new_gate is None else self._gated(probe, changes)
        for i, slot in enumerate(slots):
            skips[i] = skips[i] and self._within_reach(slot)
        # One slot without drafts runs as a whole anyway.
        indivisible = (self.drafts or len(slots) > 1) and holds_collections(self.given())
        if self.drafts and indivisible and any(skips):
            # What is added between blocks, and an image of all samples, would be missing where a draft is taken back.
            skips = [False] * len(slots)
            self.journal.warn("no drafts where control residuals or an image come with the call: steps run in full")
        if (together or indivisible or self.whole) and not all(skips):
            skips = [False] * len(slots)
        for slot, skip in zip(slots, skips, strict=True):
            slot.run = slot.run + 1 if skip else 0
        if not any(skips):
            outcome.kind, outcome.computed = FULL, ALL
        elif all(skips):
            outcome.kind, outcome.computed = PARTIAL if partial else CACHED, self.cached_work
        else:
            outcome.kind, outcome.computed = PARTIAL, self.cached_work.beside(skips.count(False) / len(skips))
        return skips

    @property
    def adds_between(self) -> bool:
        """Whether the current call brings residuals that are added between blocks."""
        return any(self.given().get(name) is not None for name in self.residuals)

    def _scheduled(self) -> list[bool]:
        """What the schedule says; a slot that holds nothing runs in full."""
        schedule = self.clock.sigma_schedule
        if self._planned is None or self._planned[0] is not schedule:
            steps = self.now.steps
            self._planned = schedule, self.schedule_for(steps, schedule.sigmas, schedule.levels).full_steps(steps)
        cached = self.now.step not in self._planned[1]
        skips = [False] * len(self.slots)
        for i, slot in enumerate(self.slots):
            skips[i] = cached and bool(slot.predictors)
        return skips

    def _gated(self, probe: torch.Tensor | None, changes: Sequence[float | None] | None) -> list[bool]:
        """What each slot's gate says."""
        self.measurements.poll(wait=self.ranks.size > 1)  # elsewhere they may have arrived later
        slots, known = self.slots, changes if changes is not None else self._changes(probe)
        rows = [None if probe is None else _row(probe, i) for i in range(len(slots))]
        return [self._judge(slot, self.now, row, change) for slot, row, change in zip(slots, rows, known, strict=True)]

    def read_norms(self) -> None:
        """Read how large what was stored is, where that has arrived."""
        for slot in self.slots:
            if slot.guard.unread:
                slot.guard.send(self._norms)
        # Where processes share the tokens they wait: numbers may arrive a step earlier on one, and all decide alike.
        if self._norms.noted or self._norms.coming:
            self._norms.poll(self.ranks.size > 1, self.ranks)

    def drop_nonfinite(self) -> None:
        """Drop what the branch's last full step stored if it is not finite, so that nothing is forecast from it.

        On an accelerator that is known when the full step has run, which may be some steps later.
        """
        self.read_norms()
        nonfinite = []
        for slot in self.slots:
            if not slot.guard.finite:
                nonfinite.append(slot)
        if not nonfinite:
            return
        for slot in nonfinite:
            slot.clear()
        self.dropped += 1
        text = f"NaN or infinity in a feature before step {self.now.at}: dropped, the step runs in full"
        self.journal.warn(NOT_A_NUMBER.annotate(text))

    def _within_reach(self, slot: CacheSlot) -> bool:
        """Whether a slot's forecasts stay in the range of its features; where not, its step runs in full."""
        distance = slot.guard.at(self.x)
        if distance <= FURTHEST:
            return True
        self.refused += 1
        where = f"step {self.now.at}: up to {distance:.3g} times its norm from the last feature"
        self.journal.warn(f"forecast refused at {where}; the step runs in full")
        return False

    def _changes(self, probe: torch.Tensor | None) -> list[float | None]:
        """How far each slot's probe has moved from its reference, relative to that; None where there is none."""
        pairs = [
            None if probe is None or slot.reference is None else (_row(probe, i) - slot.reference, slot.reference)
            for i, slot in enumerate(self.slots)
        ]
        return self.ranks.mean_ratios(pairs)

    def _judge(self, slot: CacheSlot, context: StepContext, probe: torch.Tensor | None, change: float | None) -> bool:
        assert slot.gate is not None
        skip = slot.gate.skip(context.step, context.steps, change, slot.run) and bool(slot.predictors)
        if probe is not None and not (skip and slot.gate.holds_reference):
            slot.reference = probe
        return skip

    def reject(self, slots: Sequence[CacheSlot]) -> None:
        """Drafts of these slots failed their check: the step runs in full after all."""
        for slot in slots:
            slot.run = 0
        full, outcome = sum(not slot.run for slot in self.slots), self.now.outcome
        self.rolled_back += 1
        outcome.kind = PARTIAL if full < len(self.slots) else FULL
        outcome.computed = self.cached_work.beside(full / len(self.slots))

    def store(
        self, key: str, feature: torch.Tensor, slots: Sequence[CacheSlot], measure: bool = True, noise_gain: float = 1.0
    ) -> None:
        """A step produced this feature (B, N, D), one row per slot, or all rows for the only slot.

        Args:
            measure: note how far its prediction was off; not for a feature that is itself approximate.
            noise_gain: how much larger its relative noise is than that of the denoiser's output.
        """
        x, gain, error = self.x, self.gain_at(self.now.step, self.now.steps, self.clock.sigma_schedule.sigmas), None
        noise = noise_gain * floor_at(self.noise, self.now.sigma)
        for i, slot in enumerate(slots):
            rows = feature if self.new_gate is None else feature[i : i + 1]
            if key not in slot.predictors:
                slot.predictors[key] = self.new_predictor(key, self.place(len(slot.predictors), rows.device))
            predictor = slot.predictors[key]
            gate, off = slot.gate if isinstance(slot.gate, BudgetGate) else None, None
            # In another compute mode the feature jumps, which is no error of the forecast.
            alike = slot.computed.get(key) == self.now.compute_mode
            slot.computed[key] = self.now.compute_mode
            if measure and predictor.ready and alike and (i == 0 or (gate and not gate.corrected)):
                off = self.ranks.relative(rows - predictor.predict(x), rows)
                error = off if i == 0 else error
            if measure and gate:
                gate.ran(self.now.step)
                if off is not None and not gate.corrected:
                    self.measure(slot, off, torch.full_like(off, torch.nan))
            predictor.update(rows, x, gain, noise, anew=not (alike or self.bridges))
            slot.guard.note(predictor.norms, predictor)
        if error is not None:
            self.journal.measure(error)

    def measure(self, slot: CacheSlot, error: torch.Tensor, size: torch.Tensor) -> None:
        """A full step has measured a relative error of the forecasts before it, and the sample's size (or NaN)."""
        if isinstance(gate := slot.gate, BudgetGate) and gate.takes:
            self.measurements.note(gate.takes, torch.stack([error, size]))

    def predict(self, key: str, slots: Sequence[CacheSlot]) -> torch.Tensor:
        """The feature of these slots on the current step."""
        if len(slots) == 1:
            return slots[0].predictors[key].predict(self.x)
        return torch.cat([slot.predictors[key].predict(self.x) for slot in slots])

    def _renewed(self, context: StepContext, stamp: Stamp, held: _Held | None) -> _Held:
        """Slots for this branch, in place of those that were made under another stamp."""
        if held is not None and held.stamp.request == stamp.request:
            self.dropped += 1
            changed = ", ".join(stamp.differing(held.stamp))
            text = f"cached state dropped at step {context.at}: it was made under other {changed}"
            self.journal.warn(OTHER_CONDITIONS.annotate(text))
        if any(other.stamp.request != stamp.request for other in self._held.values()):
            self.reset()
        count = stamp.shape[0] if self.new_gate is not None or self.per_sample else 1
        gates = [None if self.new_gate is None else self.new_gate(self.clock.sigma_schedule) for _ in range(count)]
        if held is not None and held.stamp.request == stamp.request:
            _carry_over([slot.gate for slot in held.slots], gates)
        self._held[context.branch] = renewed = _Held(stamp, [CacheSlot(gate=gate) for gate in gates])
        return renewed


def _carry_over(old: Sequence[Gate | None], new: Sequence[Gate | None]) -> None:
    """What a request has spent stays spent, whatever was dropped in the middle of it."""
    for before, after in zip(old, new, strict=False):
        if isinstance(before, BudgetGate) and isinstance(after, BudgetGate):
            after.spending.go_on_from(before.spending)


def _row(probe: torch.Tensor, index: int) -> torch.Tensor:
    return probe[index : index + 1]
