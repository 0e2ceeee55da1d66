"""The public face: build a stack, look at its plan, run it, take it off."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from .caching.calibration.calibrate import Budget, Calibration, calibrate
from .caching.calibration.goals import Goal
from .caching.fastcache.maps import LinearMaps
from .clock import Clock
from .compat.kept import Kept
from .errors import StackError
from .facts import Facts
from .fitting import fit_gate_of, fit_maps_of
from .follow import follow
from .install import Installer
from .layers import Layers
from .models.denoiser import denoiser_of
from .models.facts import facts_of
from .models.schedule import default_timetable
from .models.wiring import wiring_of
from .passes.base import Pass, Target
from .passes.cache import Cache
from .passes.compile import Compile
from .passes.distill import Distill
from .passes.quantize import Quantize
from .passes.sparse_attn import SparseAttention
from .plan import Plan, explain, in_order, make_plan
from .quant.analysis.depends import dependencies
from .quant.analysis.floor import NoiseFloor, measure_floor
from .quant.analysis.planning import analyse
from .quant.analysis.sensitivity import Sensitivity
from .report import Journal, Report
from .saving import load_stack, save_stack

# Models that carry a stack right now. Two stacks on one model could not be undone in any order.
_CARRYING: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Stack:
    """An ordered stack of passes over a diffusers pipeline or a bare denoiser.

    Example:
        >>> fast = Stack(pipe).quantize("int8").sparse_attn(keep=0.5).cache("svd")
        >>> print(fast.explain())
        >>> image = fast("a red ring left of a blue star").images[0]
        >>> fast.undo()

    Nothing is touched before the first call (or `apply()`). After `undo()` outputs are bit-identical to before.
    Calls from several threads run one after the other.

    Args:
        model: a `DiffusionPipeline` with a `transformer`, or the transformer itself.
        steps: denoiser steps to plan for; also the default number of steps of a call.
        shift: schedule shift of a bare denoiser (a pipeline's scheduler tells its own).
        strict: raise where the plan would repair.

    Raises:
        StackError: the model is of no known family, or `steps` < 1.
    """

    def __init__(self, model: Any, steps: int = 50, shift: float = 1.0, strict: bool = False):
        if not isinstance(steps, int) or steps < 1:
            raise StackError(f"steps must be a whole number of at least 1, got {steps!r}")
        self._pipe = None if isinstance(model, nn.Module) else model
        denoiser = model if isinstance(model, nn.Module) else denoiser_of(model)
        self._strict = strict
        self._passes: list[Pass] = []
        self._layers = Layers()
        self._base: Installer | None = None
        self._lock = threading.RLock()
        self._floor: Kept[NoiseFloor] = Kept()
        wiring = wiring_of(denoiser)
        self._facts = facts_of(denoiser, wiring, self._pipe, steps)
        self._target = Target(
            denoiser=denoiser,
            wiring=wiring,
            facts=self._facts,
            clock=Clock(default_timetable(steps, shift)),
            journal=Journal(),
            weights_version=lambda: self._layers.version,
            pipe=self._pipe,
        )

    # ---- building

    def distill(self, adapter: str, **options: Any) -> Stack:
        """Add a distilled adapter; see `stack.passes.distill.Distill`."""
        return self.add(Distill(adapter, **options))

    def quantize(self, scheme: str = "int8", **options: Any) -> Stack:
        """Add quantization of the blocks' linears; see `stack.passes.quantize.Quantize`."""
        return self.add(Quantize(scheme, **options))

    def sparse_attn(self, keep: float = 0.5, **options: Any) -> Stack:
        """Add block-sparse attention; see `stack.passes.sparse_attn.SparseAttention`."""
        return self.add(SparseAttention(keep, **options))

    def compile(self, mode: str = "default") -> Stack:
        """Compile the blocks as the other passes leave them; see `stack.passes.compile.Compile`."""
        return self.add(Compile(mode))

    def cache(self, method: str = "svd", **options: Any) -> Stack:
        """Add a feature cache; see `stack.passes.cache.Cache`."""
        return self.add(Cache(method, **options))

    def add(self, new: Pass) -> Stack:
        """Add any pass.

        Raises:
            StackError: its stage is taken, or the stack is applied already.
        """
        if self.applied:
            raise StackError(f"cannot add {new.stage!r} to an applied stack: undo() it first")
        in_order([*self._passes, new])
        self._passes.append(new)
        return self

    # ---- looking

    @property
    def plan(self) -> Plan:
        """What would be done. Touches nothing.

        Raises:
            StackError: a pass cannot work on this model.
        """
        return make_plan(self._facts, self._passes, self._strict)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes asked for, in running order."""
        return tuple(in_order(self._passes))

    @property
    def facts(self) -> Facts:
        """Facts of the untouched model."""
        return self._facts

    @property
    def pipe(self) -> Any:
        """The pipeline, or None for a bare denoiser."""
        return self._pipe

    @property
    def denoiser(self) -> nn.Module:
        """The transformer the passes act on."""
        return self._target.denoiser

    @property
    def applied(self) -> bool:
        """Whether the model carries the stack now."""
        return self._base is not None

    def explain(self) -> str:
        """The plan in words: order, reasons, clashes and repairs, bytes of state. Touches nothing."""
        return explain(self.plan)

    def report(self) -> Report:
        """What happened in the last request."""
        passes = {layer.wanted.stage: layer.applied.report() for layer in self._layers}
        notes = [f"{f.stage}: {f.what}; {f.repair}" for f in self.plan.findings if f.repair]
        return Report(
            steps=self._target.journal.records(),
            cache_bytes=sum(int(figures.get("bytes", 0)) for figures in passes.values()),
            passes=passes,
            summaries={layer.wanted.stage: layer.applied.summary for layer in self._layers},
            warnings=notes + list(self._target.journal.warnings),
        )

    # ---- running

    def apply(self) -> Stack:
        """Put every pass on the model. If one fails, the model is left as it was.

        Raises:
            StackError: the plan is refused, or the model already carries another stack.
        """
        with self._lock:
            if self.applied:
                return self
            plan = self.plan
            if self.denoiser in _CARRYING:
                raise StackError("this model already carries a stack: undo() that one first")
            base = Installer()
            follow(self._target, base)
            self._base = base
            _CARRYING.add(self.denoiser)
            self._push(plan.passes())
            return self

    def _push(self, passes: Sequence[Pass]) -> None:
        try:
            self._layers.push(self._target, passes)
        except BaseException:
            self._take_off()
            raise

    def freeze(self) -> Stack:
        """Drop the original weights of quantized linears, applying the stack first if need be.

        Memory falls by their bytes, unless somebody else holds the model's weights. The stages above can still be
        undone; `undo()` as a whole is refused from now on.

        Raises:
            StackError: nothing is quantized, or `ends="keep"` needs the originals.
        """
        with self._lock:
            self.apply()
            self._layers.freeze()
            return self

    def save(self, folder: str | Path) -> int:
        """Write the quantized weights, the passes above them and the scheduler; returns the linears written rounded.

        Raises:
            StackError: not applied, nothing quantized, or quantized by another library than this one.
        """
        with self._lock:
            return save_stack(self, folder)

    @staticmethod
    def load(folder: str | Path, model: Any) -> Stack:
        """A stack over a model with saved quantized weights in place of its own: the same outputs, bit for bit.

        The model is quantized for good. It may be on the meta device, so that full-precision weights are never made.

        Raises:
            StackError: no such folder, or a file of another model.
        """
        return load_stack(folder, model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline (or the bare denoiser) through the stack, applying it first if need be."""
        with self._lock:
            self.apply()
            if self._pipe is None:
                return self.denoiser(*args, **kwargs)
            steps = kwargs.setdefault("num_inference_steps", self.plan.facts_after.steps)
            if steps < 1:
                raise StackError(f"num_inference_steps must be at least 1, got {steps}")
            self._target.clock.restart()
            return self._pipe(*args, **kwargs)

    def replace(self, new: Pass) -> Stack:
        """Exchange the pass of a stage; stages above it are taken off and put back if the stack is applied.

        Raises:
            StackError: the stage is not in the stack.
        """
        with self._lock:
            self._depart(new.stage)
            self._passes = [new if p.stage == new.stage else p for p in self._passes]
            if self.applied:
                self._push(self.plan.passes()[len(self._layers) :])
            return self

    def calibrate(
        self,
        prompts: Sequence[str],
        held_out: Sequence[str],
        full_steps: int = 0,
        psnr: float = 0.0,
        seconds: float = 0.0,
        seed: int = 0,
        trials: int = 60,
        budget: float = 60.0,
        progress: bool = True,
        theory: bool = True,
    ) -> Calibration:
        """Search the cache's full steps and forecast on finished pictures, check them on other prompts, keep the best.

        Runs on the stack as it is: quantized, sparse, distilled. The result is in the stack's cache pass afterwards.

        Args:
            prompts: at least two, each with its own seed from `seed` on.
            held_out: other prompts; their PSNR is reported, never searched on.
            full_steps, psnr, seconds: what to reach, see `stack.caching.calibration.goals.Goal`; one of them, or none
                for as many full steps as the cache has now.
            trials: runs of the whole batch of prompts to spend.
            budget: seconds to spend, the check on held-out prompts included.
            theory: start from the schedule that the recorded errors recommend; see `stack.caching.calibration.theory`.

        Raises:
            StackError: see `stack.caching.calibration.calibrate.calibrate`.
        """
        with self._lock:
            goal, spend = Goal(full_steps, psnr, seconds), Budget(trials, budget)
            return calibrate(self, prompts, held_out, goal, seed, spend, progress, theory)[1]

    def sensitivity(
        self, prompts: Sequence[str], schemes: Sequence[str] = (), seed: int = 0, steps: int = 6, progress: bool = True
    ) -> Sensitivity:
        """Measure what rounding each linear costs; a pass with `max_error` or `max_bytes` gets the mix it asks for.

        Arguments and errors are those of `stack.quant.analysis.planning.analyse`.
        """
        with self._lock:
            return analyse(self, prompts, schemes, seed, steps, progress)

    def noise_floor(
        self, prompts: Sequence[str], seed: int = 0, steps: int = 6, neighbours: int = 4, progress: bool = True
    ) -> NoiseFloor:
        """Measure what quantization adds to one forward pass: `stack.quant.analysis.floor.measure_floor`."""
        with self._lock:
            return self._floor.keep(measure_floor(self, prompts, seed, steps, neighbours, progress))

    @property
    def floor(self) -> NoiseFloor | None:
        """The noise floor as last measured; None where there is none, or where what it depends on has changed."""
        return self._floor.current(dependencies(self))

    def fit_gate(self, prompts: Sequence[str], seed: int = 0) -> Stack:
        """Measure what a "magnitude" or "polynomial" gate needs on the stack as it is, and put it into the cache pass.

        Raises:
            StackError: no such gate in the stack, no pipeline, or no prompts.
        """
        with self._lock:
            return fit_gate_of(self, prompts, seed)

    def fit_maps(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        ridge: float = 1e-3,
        rank: int = 0,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> LinearMaps:
        """Fit FastCache's linear maps on the stack as it is, without its cache, and put them into the cache pass.

        Every prompt is run twice: once to sum up what each block does, once to measure what each map costs. The sums
        take 2 D^2 numbers in float64 per block and stream.

        Args:
            prompts: 10 or more for maps that hold on others; each with its own seed from `seed` on.
            ridge: see `GramSums.solve`.
            rank: of every map; 0 is full.
            save: a safetensors file to write them to, for the option `maps` of a recipe beside it.

        Raises:
            StackError: no FastCache in the stack, no pipeline, or no prompts. The stack is left as it was.
        """
        with self._lock:
            return fit_maps_of(self, prompts, seed, ridge, rank, save, progress)

    def undo(self, stage: str | None = None) -> Stack:
        """Take the whole stack off, or one stage out of it (the stages above it are taken off and put back).

        Raises:
            StackError: the stage is not in the stack.
        """
        with self._lock:
            if stage is not None:
                return self._undo_stage(stage)
            self._layers.shrink(0)
            self._take_off()
            return self

    def _take_off(self) -> None:
        """Everything that can be; a frozen stack stays a stack."""
        self._layers.shrink(self._layers.final)
        if self._base is not None and not self._layers.final:
            self._base.rollback()
            self._base = None
            _CARRYING.discard(self.denoiser)
        self._target.clock.restart()

    def _undo_stage(self, stage: str) -> Stack:
        self._depart(stage)
        self._passes = [p for p in self._passes if p.stage != stage]
        if self.applied:
            self._push(self.plan.passes()[len(self._layers) :])
        return self

    def _depart(self, stage: str) -> None:
        """Take off a stage and everything above it."""
        stages = [p.stage for p in self._passes]
        if stage not in stages:
            raise StackError(f"no stage {stage!r} here: the stack has {', '.join(stages) or 'no passes'}")
        self._layers.shrink(self._layers.below(stage))

    def __enter__(self) -> Stack:
        return self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_off()
