"""Runs a cache on a model: decides each step by schedule or gate, keeps predictors per guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import not_

import torch

from ..compat.noise import Floor, floor_at
from ..compat.rules.state import NOT_A_NUMBER, OTHER_CONDITIONS
from ..models.schedule import SigmaSchedule
from ..runtime.report import Journal
from ..runtime.stamp import Conditions, Stamp
from ..runtime.step_clock import CACHED, FULL, PARTIAL, Clock, StepContext
from .forecast import coordinate
from .gates import BudgetGate, Gate
from .guard import FURTHEST, ExtrapolationGuard, NormReader
from .placement import Place, Placement, all_on_device
from .predictor import Predictor
from .schedules import Schedule


@dataclass
class CacheSlot:
    """What is decided and predicted together: a whole batch under a fixed schedule, one sample under a gate.

    Samples of a batch must not share a gate: the picture of one would depend on the others.
    """

    predictors: dict[str, Predictor] = field(default_factory=dict)
    gate: Gate | None = None
    reference: torch.Tensor | None = None  # the probe that the next one is compared with
    run: int = 0  # cached steps since the last full one
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # what a site holds besides predictors
    guard: ExtrapolationGuard = field(default_factory=ExtrapolationGuard)

    def clear(self) -> None:
        """Forget what was stored, not what was decided."""
        self.predictors.clear()
        self.kept.clear()
        self.guard.clear()


@dataclass
class _Held:
    stamp: Stamp
    cells: list[CacheSlot]


@dataclass
class CacheController:
    """State of one cache on one model.

    Attributes:
        schedule_for: the schedule of a request with this many steps at these noise levels; not asked where there is a
            gate.
        new_predictor: makes the predictor of a feature, by its key and where its state is to lie.
        conditions: asked at every step; a change drops the state.
        new_gate: makes a gate for a request; None for a fixed schedule.
        gain_at: (step, steps, noise levels) to the factor on the gains from a full step to the next.
        coordinate: of all forecasts, see `Forecast.coordinate`.
        per_sample: a cell for every sample although there is no gate.
        noise: random error of what full steps produce, over sigma; empty takes them as exact.
        place: where the state of a cell's next feature lies, by the number of those it has, and their device.
        figures: what a site has to tell in the report.
        shared: what a site holds for all branches of the request.
        dropped: states dropped within a request: their stamp no longer fitted, or they were no numbers.
        rolled_back: steps whose drafts failed their check.
        refused: steps that ran in full because their forecast would have gone too far.
        now: the current denoiser call, once it has begun.
        cells: those of its branch.
        x: its coordinate.
    """

    clock: Clock
    journal: Journal
    schedule_for: Callable[[int, Sequence[float]], Schedule]
    new_predictor: Callable[[str, Placement], Predictor]
    conditions: Callable[[], Conditions]
    new_gate: Callable[[SigmaSchedule], Gate] | None = None
    gain_at: Callable[[int, int, Sequence[float]], float] = lambda step, steps, sigmas: 1.0
    coordinate: str = "time"
    per_sample: bool = False
    noise: Floor = ()
    place: Place = all_on_device
    figures: dict[str, float] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    dropped: int = 0
    rolled_back: int = 0
    refused: int = 0
    _held: dict[str, _Held] = field(default_factory=dict)
    _reader: NormReader = field(default_factory=NormReader)
    _planned: tuple[SigmaSchedule, frozenset[int]] | None = None
    now: StepContext = field(init=False)
    cells: list[CacheSlot] = field(default_factory=list)
    x: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory of the device that is held, in bytes."""
        cells = self._all_cells
        probes = sum(cell.reference.nbytes for cell in cells if cell.reference is not None)
        kept = sum(tensor.nbytes for cell in cells for tensor in cell.kept.values())
        shared = sum(tensor.nbytes for tensor in self.shared.values())
        return probes + kept + shared + sum(p.bytes for cell in cells for p in cell.predictors.values())

    @property
    def host_bytes(self) -> int:
        """Memory of the host that is held because the device's is short, in bytes."""
        return sum(p.host_bytes for cell in self._all_cells for p in cell.predictors.values())

    @property
    def _all_cells(self) -> list[CacheSlot]:
        return [cell for held in self._held.values() for cell in held.cells]

    @property
    def estimates(self) -> dict[str, float]:
        """The estimated error of the final sample, of the worst sample and branch, where there is a budget."""
        spent = [cell.gate.budget.spent for cell in self._all_cells if isinstance(cell.gate, BudgetGate)]
        return {"estimated_error": max(spent)} if spent else {}

    def reset(self) -> None:
        """Forget every request."""
        self._held.clear()
        self.cells = []
        self._reader.clear()
        self.shared.clear()

    def empty(self) -> None:
        """Drop what was stored in this request, so that the next decision is for full steps; gates go on counting."""
        for cell in self._all_cells:
            cell.clear()
            cell.reference, cell.run = None, 0
        self.shared.clear()

    @property
    def probe(self) -> str:
        """What the gate wants to see before it decides; empty where nothing is needed."""
        cell = self.cells[0]
        return cell.gate.probe if cell.gate else ""

    def begin(self, tokens: torch.Tensor) -> None:
        """A denoiser call reaches the blocks with these tokens (B, N, D)."""
        tick, schedule = self.clock.tick, self.clock.sigma_schedule
        if tick is None:
            raise RuntimeError("the clock has not been advanced: the denoiser was called around its stack")
        self.now, self.x = tick, coordinate(self.coordinate, tick.step, tick.time, tick.sigma)
        active = tick.active_set
        active.cached, active.full = True, ()  # nothing is decided yet
        shape, conditions = tuple(tokens.shape), self.conditions()
        stamp = Stamp(tick.request, tick.branch, conditions, schedule, shape, tokens.dtype, tokens.device)
        held = self._held.get(tick.branch)
        if held is None or held.stamp != stamp:
            held = self._renewed(tick, stamp, held)
        self.cells = held.cells

    def decide(
        self,
        probe: torch.Tensor | None = None,
        partial: bool = False,
        changes: Sequence[float | None] | None = None,
        together: bool = False,
    ) -> list[bool]:
        """Whether each cell is cached on this step. Called once per step, with the gate's probe if it has one.

        Args:
            partial: a cached step computes something nevertheless.
            changes: what each cell's gate is told, where the site measures it instead of handing over a probe.
            together: the batch can only run as a whole, so it is cached only where every cell would be.
        """
        cells, active = self.cells, self.now.active_set
        self.drop_nonfinite()
        skips = self._scheduled() if self.new_gate is None else self._gated(probe, changes)
        for i, cell in enumerate(cells):
            skips[i] = skips[i] and self._within_reach(cell)
        if together and not all(skips):
            skips = [False] * len(cells)
        for cell, skip in zip(cells, skips, strict=True):
            cell.run = cell.run + 1 if skip else 0
        active.full = tuple(map(not_, skips))
        active.kind = FULL if not any(skips) else CACHED if all(skips) and not partial else PARTIAL
        return skips

    def _scheduled(self) -> list[bool]:
        """What the schedule says; a cell that holds nothing runs in full."""
        schedule = self.clock.sigma_schedule
        if self._planned is None or self._planned[0] is not schedule:
            steps = self.now.steps
            self._planned = schedule, self.schedule_for(steps, schedule.sigmas).full_steps(steps)
        cached = self.now.step not in self._planned[1]
        skips = [False] * len(self.cells)
        for i, cell in enumerate(self.cells):
            skips[i] = cached and bool(cell.predictors)
        return skips

    def _gated(self, probe: torch.Tensor | None, changes: Sequence[float | None] | None) -> list[bool]:
        """What each cell's gate says."""
        cells, told = self.cells, changes if changes is not None else self._changes(probe)
        rows = [None if probe is None else _row(probe, i) for i in range(len(cells))]
        return [self._judge(cell, self.now, row, change) for cell, row, change in zip(cells, rows, told, strict=True)]

    def read_norms(self) -> None:
        """Read how large what was stored is, where that has arrived."""
        waiting = bool(self._reader.coming)
        for cell in self.cells:
            waiting = waiting or bool(cell.guard.unread)
        if waiting:
            self._reader.poll([cell.guard for cell in self.cells])

    def drop_nonfinite(self) -> None:
        """Forget what the branch's last full step stored if it is no number: nothing is forecast from it.

        On an accelerator that is known when the full step has run, which may be some steps later.
        """
        self.read_norms()
        nonfinite = []
        for cell in self.cells:
            if not cell.guard.finite:
                nonfinite.append(cell)
        if not nonfinite:
            return
        for cell in nonfinite:
            cell.clear()
        self.dropped += 1
        text = f"NaN or infinity in a feature before step {self.now.step}: dropped, the step runs in full"
        self.journal.warn(NOT_A_NUMBER.annotate(text))

    def _within_reach(self, cell: CacheSlot) -> bool:
        """Whether a cell's forecasts stay in the range of its features; where not, its step runs in full."""
        distance = cell.guard.at(self.x)
        if distance <= FURTHEST:
            return True
        self.refused += 1
        where = f"step {self.now.step}: up to {distance:.3g} times its norm from the last feature"
        self.journal.warn(f"forecast refused at {where}; the step runs in full")
        return False

    def _changes(self, probe: torch.Tensor | None) -> list[float | None]:
        """How far each cell's probe has moved from its reference, relative to that; None where there is none."""
        pairs = [
            None if probe is None or cell.reference is None else (_row(probe, i) - cell.reference, cell.reference)
            for i, cell in enumerate(self.cells)
        ]
        return mean_ratios(pairs)

    def _judge(self, cell: CacheSlot, tick: StepContext, probe: torch.Tensor | None, change: float | None) -> bool:
        assert cell.gate is not None
        skip = cell.gate.skip(tick.step, tick.steps, change, cell.run) and bool(cell.predictors)
        if probe is not None and not (skip and cell.gate.holds_reference):
            cell.reference = probe
        return skip

    def reject(self, cells: Sequence[CacheSlot]) -> None:
        """Drafts of these cells failed their check: the step runs in full after all."""
        for cell in cells:
            cell.run = 0
        active = self.now.active_set
        active.full = tuple(not cell.run for cell in self.cells)
        self.rolled_back += 1
        active.kind = PARTIAL if any(cell.run for cell in self.cells) else FULL

    def store(
        self, key: str, feature: torch.Tensor, cells: Sequence[CacheSlot], measure: bool = True, noise_gain: float = 1.0
    ) -> None:
        """A step produced this feature (B, N, D), one row per cell, or all rows for the only cell.

        Args:
            measure: note how far its prediction was off; not for a feature that is itself approximate.
            noise_gain: how much larger its relative noise is than that of the denoiser's output.
        """
        x, gain, error = self.x, self.gain_at(self.now.step, self.now.steps, self._sigmas), None
        noise = noise_gain * floor_at(self.noise, self.now.sigma)
        for i, cell in enumerate(cells):
            rows = feature if self.new_gate is None else feature[i : i + 1]
            if key not in cell.predictors:
                cell.predictors[key] = self.new_predictor(key, self.place(len(cell.predictors), rows.device))
            predictor = cell.predictors[key]
            budget = cell.gate.budget if isinstance(cell.gate, BudgetGate) else None
            off = None
            # In another compute mode the feature jumps, and that says nothing of forecasts.
            alike = predictor.compute_mode == self.now.compute_mode
            if measure and predictor.ready and alike and (i == 0 or budget):
                off = (rows - predictor.predict(x)).norm() / rows.norm().clamp_min(torch.finfo(rows.dtype).tiny)
                error = off if i == 0 else error
            if measure and budget:
                budget.ran(self.now.step, None if off is None else float(off))
            predictor.update(rows, x, gain, noise, self.now.compute_mode)
            cell.guard.note(predictor.norms, predictor)
        if error is not None:
            self.journal.measure(error)

    def predict(self, key: str, cells: Sequence[CacheSlot]) -> torch.Tensor:
        """The feature of these cells on the current step."""
        if len(cells) == 1:
            return cells[0].predictors[key].predict(self.x)
        return torch.cat([cell.predictors[key].predict(self.x) for cell in cells])

    @property
    def _sigmas(self) -> Sequence[float]:
        return self.clock.sigma_schedule.sigmas

    def _renewed(self, tick: StepContext, stamp: Stamp, held: _Held | None) -> _Held:
        """Cells for this branch, in place of those that were made under another stamp."""
        if held is not None and held.stamp.request == stamp.request:
            self.dropped += 1
            changed = ", ".join(stamp.differing(held.stamp))
            text = f"cached state dropped at step {tick.step}: it was made under other {changed}"
            self.journal.warn(OTHER_CONDITIONS.annotate(text))
        if any(other.stamp.request != stamp.request for other in self._held.values()):
            self.reset()
        count = stamp.shape[0] if self.new_gate is not None or self.per_sample else 1
        gates = [None if self.new_gate is None else self.new_gate(self.clock.sigma_schedule) for _ in range(count)]
        if held is not None and held.stamp.request == stamp.request:
            _carry_over([cell.gate for cell in held.cells], gates)
        self._held[tick.branch] = renewed = _Held(stamp, [CacheSlot(gate=gate) for gate in gates])
        return renewed


def _carry_over(old: Sequence[Gate | None], new: Sequence[Gate | None]) -> None:
    """What a request has spent stays spent, whatever was dropped in the middle of it."""
    for before, after in zip(old, new, strict=False):
        if isinstance(before, BudgetGate) and isinstance(after, BudgetGate):
            after.budget.spent = before.budget.spent


def _row(probe: torch.Tensor, index: int) -> torch.Tensor:
    return probe[index : index + 1]


def mean_ratios(pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | None]) -> list[float | None]:
    """mean|part| / mean|whole| of every (part, whole), and None for None; read back in one go."""
    ratios = [
        part.abs().mean() / whole.abs().mean().clamp_min(torch.finfo(whole.dtype).tiny)
        for part, whole in (pair for pair in pairs if pair is not None)
    ]
    numbers = iter(torch.stack(ratios).tolist() if ratios else ())
    return [None if pair is None else next(numbers) for pair in pairs]
