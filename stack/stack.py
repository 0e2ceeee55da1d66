"""The public face: build a stack, look at its plan, run it, take it off."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from .caching.cache import Cache, within
from .calibration import measuring, place_search, rounding_fit, share_fit, solver_fit, survival
from .calibration.quant.floor import NoiseFloor
from .compile import Compile
from .core.errors import StackError
from .core.facts import Facts
from .core.passes import Pass, stage_of
from .core.plan import Plan, in_order
from .core.validate import RunSteps, checked
from .denoisers import Denoisers
from .distill.adapter import Adapter
from .distill.call import transformed_call
from .distill.distill import Distill
from .measure.decoded import picture_faults
from .model_facts import facts_of
from .models.denoiser import denoiser_of
from .models.derive.wiring import wiring_of
from .models.layout import Wiring
from .models.schedule import flow_timetable
from .passes import PASSES, made
from .planner import Planner
from .recipe import Recipe, recipe_of
from .runtime.call_arguments import named_arguments, own_steps
from .runtime.layers import Layers
from .runtime.mounted import Mounted, mounted_on
from .runtime.report import Journal, Report
from .runtime.step_clock import Clock
from .runtime.target import Target
from .saving import load_weights, save_stack, stack_words, to_recipe


class Stack:
    """An ordered stack of passes over a diffusers pipeline or a bare denoiser.

    Example:
        >>> fast = Stack(pipe).quantize("int8").sparse_attn(keep=0.5).cache("svd")
        >>> print(fast.explain())
        >>> image = fast("a red ring left of a blue star").images[0]
        >>> fast.undo()

    Nothing changes before the first call or `apply()`. After `undo()` outputs are bit-identical to before. Calls from
    several threads run one after the other.

    Args:
        model: a `DiffusionPipeline` with a `transformer`, or the transformer itself.
        steps: denoiser steps to plan for, the default of a call; None for the pipeline's own, 50 where it has none.
        shift: schedule shift of a bare denoiser (a pipeline's scheduler has its own).
        strict: raise instead of repairing.
        max_error: limit on the relative error of the final latents for all passes together; 0 for none. `fit_gate`
            measures how much of it the other passes use, and the cache may use the rest.

    Raises:
        StackError: the model has no denoiser of diffusers, `steps` < 1, or `max_error` is outside [0, 1).
    """

    def __init__(
        self, model: Any, steps: int | None = None, shift: float = 1.0, strict: bool = False, max_error: float = 0.0
    ):
        checked(RunSteps | None, steps, "steps")
        checked(float, shift, "shift")
        checked(bool, strict, "strict")
        if not 0 <= checked(float, max_error, "max_error") < 1:
            raise StackError(f"max_error must be in [0, 1), got {max_error!r}: 0.05 allows 5 % of the final latents")
        denoiser = model if isinstance(model, nn.Module) else denoiser_of(model)
        self.max_error = max_error
        self._pipe = None if isinstance(model, nn.Module) else model
        self._planner = Planner(own_steps(model) if steps is None else steps, strict)
        self._passes: list[Pass] = []
        self._layers = Layers()
        self._call_notes: list[str] = []  # what had to be put right in the last call
        self.lock = threading.RLock()
        self.analyses: dict[str, Any] = {}
        self._aim(denoiser, shift)

    def _aim(self, denoiser: nn.Module, shift: float) -> None:
        """From now on the stack is for this denoiser."""
        wiring = wiring_of(denoiser)
        self._target = Target(
            denoiser=denoiser, wiring=wiring, facts=facts_of(denoiser, wiring, self._pipe, self._planner.steps),
            clock=Clock(flow_timetable(self._planner.steps, shift)), journal=Journal(),
            passes=partial(attrgetter("version"), self._layers), pipe=self._pipe, owner=self, lock=self.lock,
            abort=lambda: self._denoisers.let_go(),
            prepare=lambda steps: self._denoisers.prepare(self._passes, steps),
            taken_over=lambda: self._denoisers.let_go(self._target),
        )  # fmt: skip
        self._mounted = Mounted(self._target, self._layers)
        self._denoisers = Denoisers(self._mounted, self._planner)

    @classmethod
    def from_recipe(
        cls, recipe: Recipe | str | Path, model: Any, stages: Iterable[str] | None = None, steps: int | None = None
    ) -> Stack:
        """A stack of a recipe's passes (or of those of some stages only) over a model; nothing is applied yet."""
        recipe = recipe_of(recipe)
        return cls(model, steps=recipe.steps if steps is None else steps)._with(recipe.passes(stages))

    to_recipe = to_recipe

    @staticmethod
    def of(model: Any) -> Stack:
        """The stack that is applied to a pipeline or a denoiser.

        Raises:
            StackError: there is none.
        """
        mounted = mounted_on(model if isinstance(model, nn.Module) else denoiser_of(model))
        owner = mounted.target.owner if mounted is not None else None
        if not isinstance(owner, Stack):
            raise StackError("this model carries no stack: expected one that was applied; try Stack(model).apply()")
        return owner

    def distill(self, adapter: str, switchable: bool = False, **options: Any) -> Stack:
        """Add a distilled adapter, fused, or as a branch that `swap_adapter` exchanges.

        See `stack.distill.distill.Distill` and `stack.distill.adapter.Adapter`.
        """
        return self.add(made(Adapter if switchable else Distill, adapter=adapter, **options))

    def quantize(self, scheme: str = "int8", **options: Any) -> Stack:
        """Add quantization of the blocks' linears; see `stack.quant.quantize.Quantize`."""
        return self.add(made(PASSES["quantize"], scheme=scheme, **options))

    def solver(self, steps: int | None = None, **options: Any) -> Stack:
        """Replace the scheduler's steps by fewer second-order ones; see `stack.solver.solver.Solver`."""
        return self.add(made(PASSES["solver"], steps=steps, **options))

    def dense_attn(self, backend: str = "auto") -> Stack:
        """Add a faster exact kernel of attention; see `stack.attention.dense_attn.DenseAttention`."""
        return self.add(made(PASSES["dense_attn"], backend=backend))

    def sage_attn(self, **options: Any) -> Stack:
        """Add 8-bit attention for calls that stay dense; see `stack.attention.sage_attn.SageAttention`."""
        return self.add(made(PASSES["sage_attn"], **options))

    def sparse_attn(self, keep: float | None = None, **options: Any) -> Stack:
        """Add block-sparse attention; see `stack.attention.sparse_attn.SparseAttention`."""
        return self.add(made(PASSES["sparse_attn"], keep=keep, **options))

    def compile(self, mode: str = "default") -> Stack:
        """Compile the blocks; "off" declines it where the plan would add it; see `stack.compile.Compile`."""
        return self.add(Compile(mode))

    def cache(self, method: str = "svd", **options: Any) -> Stack:
        """Add a feature cache; see `stack.caching.cache.Cache`."""
        return self.add(made(Cache, method=method, **options))

    def add(self, new: Pass) -> Stack:
        """Add any pass.

        Raises:
            StackError: its stage is taken, or the stack is applied already.
        """
        if self.applied:
            raise StackError(f"cannot add {stage_of(new)!r} to an applied stack: undo() it first")
        new = within(new, self.max_error)
        in_order([*self._passes, new])
        self._passes.append(new)
        return self

    def beside(self, passes: Iterable[Pass]) -> Stack:
        """Another stack, of these passes, for the same model and as many steps."""
        return Stack(self._pipe if self._pipe is not None else self.denoiser, steps=self.facts.steps)._with(passes)

    def _with(self, passes: Iterable[Pass]) -> Stack:
        for one in passes:
            self.add(one)
        return self

    @property
    def plan(self) -> Plan:
        """The plan. Changes nothing.

        Raises:
            StackError: a pass cannot work on this model.
        """
        return self._planner.plan(self.facts, self._passes)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes asked for, in running order."""
        return tuple(in_order(self._passes))

    @property
    def facts(self) -> Facts:
        """Facts of the untouched model: as it is now, or as it was when the passes were put on."""
        if not self.applied:
            if self._denoisers.replaced():
                self._aim(denoiser_of(self._pipe), self._target.clock.timetable.schedule.shift)
            self._planner.read(self._target)
        return self._target.facts

    @property
    def pipe(self) -> Any:
        """The pipeline, or None for a bare denoiser."""
        return self._pipe

    @property
    def denoiser(self) -> nn.Module:
        """The transformer the passes act on."""
        return self._target.denoiser

    @property
    def wiring(self) -> Wiring:
        """How the denoiser's family is wired."""
        return self._target.wiring

    @property
    def clock(self) -> Clock:
        """Follows the calls of the denoiser."""
        return self._target.clock

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the last request's steps, largest first; before any, those of an unshifted schedule."""
        return self._target.clock.sigma_schedule.sigmas

    @property
    def applied(self) -> bool:
        """Whether the stack is on the model now."""
        return self._mounted.on

    def explain(self) -> str:
        """The plan in words: order, reasons, clashes, repairs, bytes of state. Changes nothing."""
        return self._denoisers.explained(self.plan, self._passes)

    def report(self) -> Report:
        """What happened in the last pipeline call."""
        return self._denoisers.report(self._call_notes)

    # ---- measuring: functions over `StackLike`

    calibrate = measuring.calibrate
    fit_rounding = rounding_fit.fit_rounding
    fit_shares = share_fit.fit_shares
    noise_floor = measuring.noise_floor
    fit_gate = measuring.fit_gate
    fit_maps = measuring.fit_maps
    fit_bases = measuring.fit_bases
    search_places = place_search.search_places
    fit_solver = solver_fit.fit_solver
    surviving_updates = survival.surviving_updates

    @property
    def floor(self) -> NoiseFloor | None:
        """The noise floor as last measured, see `stack.calibration.measuring.floor_of`."""
        return measuring.floor_of(self)

    def apply(self) -> Stack:
        """Put every pass on the model. If one fails, the model is left as it was.

        Raises:
            StackError: the plan is refused, or another stack is on the model.
        """
        with self.lock:
            if self.applied:
                return self
            plan = self.plan  # first: it may be for another model than so far
            self._denoisers.carry(plan, self._passes)
            return self

    def freeze(self) -> Stack:
        """Drop the original weights of quantized linears, applying the stack first if need be.

        This frees their memory, unless other code holds the weights. The stages above can still be undone one by one;
        `undo()` as a whole is then refused.

        Raises:
            StackError: nothing is quantized, or `ends="keep"` needs the originals.
        """
        with self.lock:
            self.apply()
            self._denoisers.freeze()
            return self

    def save(self, folder: str | Path) -> int:
        """Write the quantized weights, the passes above them and the scheduler; returns the linears written rounded.

        Raises:
            StackError: not applied, nothing quantized, or quantized by another library than this one.
        """
        with self.lock:
            return save_stack(self, folder)

    @staticmethod
    def load(folder: str | Path, model: Any) -> Stack:
        """A stack over a model with saved quantized weights in place of its own: the same outputs, bit for bit.

        The model is quantized for good. It may be on the meta device, so that full-precision weights are never made.

        Raises:
            StackError: no such folder, or a file of another model.
        """
        return Stack.from_recipe(load_weights(folder, model), model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline (or the bare denoiser) through the stack, applying it first if need be."""
        with self.lock:
            if self._pipe is None:
                return self.apply().denoiser(*args, **kwargs)
            given = named_arguments(self._pipe, args, kwargs)
            if self.applied and (replaced := self._denoisers.replaced()):
                raise StackError(replaced)
            self.apply()
            call_transforms = [layer.applied.call for layer in self._layers if layer.applied.call]
            given, self._call_notes = transformed_call(call_transforms, given, self._planner.strict)
            given.setdefault("num_inference_steps", self.plan.facts_after.steps)
            try:
                with self._target.one_page():
                    result = self._pipe(**given)
            except BaseException:
                self._target.forget()
                raise
            self._call_notes += picture_faults(result)
            return result

    def replace(self, new: Pass) -> Stack:
        """Exchange the pass of a stage; stages above it are taken off and put back if the stack is applied.

        Raises:
            StackError: the stage is not in the stack, or the new pass cannot work. What the plan refuses leaves the
                stack as it was; a pass that fails while it is put on takes the whole stack off.
        """
        with self.lock:
            self._expect(stage := stage_of(new := within(new, self.max_error)))
            wanted = [new if p.stage == stage else p for p in self._passes]
            return self._exchange(wanted if new in wanted else [*wanted, new])

    def swap_adapter(self, adapter: str, **options: Any) -> Stack:
        """Exchange a switchable adapter for another: what is below keeps its weights, and cached state is dropped.

        Raises:
            StackError: no switchable adapter in the stack, or the new one does not fit; see `replace`.
        """
        if not any(isinstance(p, Adapter) for p in self.plan.passes()):
            raise StackError("no switchable adapter here: expected .distill(name, switchable=True)")
        kind = Adapter if any(isinstance(p, Adapter) for p in self._passes) else Distill
        return self.replace(kind(adapter, **options))

    def undo(self, stage: str | None = None) -> Stack:
        """Take the whole stack off, or one stage out of it (the stages above it are taken off and put back).

        A stage that the plan has added is turned off, as `compile("off")` does.

        Raises:
            StackError: the stage is not in the stack.
        """
        with self.lock:
            if stage is not None:
                instead = self._expect(stage)
                return self._exchange([p for p in self._passes if p.stage != stage] + ([instead] if instead else []))
            self._denoisers.check()
            self._denoisers.take_off()
            return self

    def _expect(self, stage: str) -> Pass | None:
        """For a stage that was not asked for but added by the plan: the pass that leaves it out."""
        stages = [p.stage for p in self._passes]
        instead = None if stage in stages else self.plan.added.get(stage)
        if stage not in stages and instead is None:
            raise StackError(f"no stage {stage!r} here: the stack has {', '.join(stages) or 'no passes'}")
        return instead

    def _exchange(self, wanted: list[Pass]) -> Stack:
        """Change the passes, on the model too if the stack is applied."""
        plan = self._planner.anew(self._mounted, wanted) if self.applied else None
        before = self._passes
        try:
            self._passes = wanted
            if plan is not None:
                self._denoisers.carry(plan, wanted)
        except BaseException:
            self._passes = before
            raise
        return self

    def __repr__(self) -> str:
        return stack_words(self)

    def __reduce__(self) -> str:
        raise StackError("a stack is not copied: copy its model, which gives a plain one, or use save(folder)")

    def __enter__(self) -> Stack:
        return self._denoisers.entered(self.apply())

    def __exit__(self, *_: Any) -> None:
        self._denoisers.left()
