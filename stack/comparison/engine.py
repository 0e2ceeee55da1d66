"""Makes the pictures of a comparison: one pipeline, on which stacks are applied and taken off in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..attention.sparse_attn import SparseAttention
from ..compat.rules.steps import FEWEST_STEPS
from ..compile import Compile
from ..core.installer import Installer
from ..measure.flops import Work, counting
from ..measure.memory import PeakMemory
from ..measure.multistep import multistep_of
from ..measure.timing import timed
from ..models.denoiser import all_denoisers, denoiser_of
from ..models.derive.wiring import wiring_of
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls
from ..stack import Stack
from .base import COMPILED, EAGER, TRIAL_STEPS, Base, can_be_exact, choose_base, chosen_base, compiled, stand_in
from .peers import Peer
from .rows import BASE_EAGER, CONTROL, Generation, Row, is_multistep

if TYPE_CHECKING:
    from ..core.passes import Pass
    from ..runtime.report import Report

WARM_UP_STEPS = 2
# Short runs after a compiled stack has been put on an accelerator, outside the timed part: kernels are tuned in the
# first, graphs captured in the second.
CAPTURES = 2


class Engine(Protocol):
    """What the measuring loop asks for."""

    @property
    def multistep(self) -> bool:
        """Whether the second-order control exists for this model."""
        ...

    @property
    def pace(self) -> float:
        """Time of a step of the controls, the base's is 1."""
        ...

    def warm_up(self, row: Row, prompt: str) -> None:
        """Run a row for a few steps: kernels are chosen, buffers allocated."""
        ...

    def generate(self, row: Row, prompt: str, seed: int) -> Generation:
        """One timed picture."""
        ...


class PipelineEngine:
    """The real engine.

    Stacks are applied before and undone after every picture, outside the timed part, so that no row runs on what
    another one left, and only one model is held. Where the base is compiled so are the stacks: like with like. Controls
    have the fastest exact attention beside that.

    Args:
        recipes: passes by the name of their recipe.
        call: see `stack.runtime.pipeline_calls.PipelineCalls`.

    Attributes:
        base: what the base runs on; set by `prepare`.
        work: multiply-accumulates of one denoiser call; set by `prepare`. Where a pipeline has two, of the first one's.
        fewest: steps of a run in which every denoiser of the pipeline is called; set by `prepare`.
        output: what is made: "pt" for pictures in [0, 1], "latent" for latents.
    """

    def __init__(
        self,
        pipe: Any,
        recipes: Mapping[str, Sequence[Pass]],
        steps: int,
        call: Call | None = None,
        peers: Sequence[Peer] = (),
        output: str = "pt",
    ):
        self.pipe = pipe
        self.calls = PipelineCalls(pipe, call)
        self.steps = steps
        self.output = output
        self.device = torch.device(pipe.device)
        self.base = Base(all_denoisers(pipe), EAGER, {}, [], all_denoisers(pipe))
        self.fewest = WARM_UP_STEPS
        self.work = Work(0, 0, 0)
        self._recipes = dict(recipes)
        self._peers = {peer.name: peer for peer in peers}
        self._stacks: dict[tuple[str, tuple[str, ...]], Stack] = {}
        self._solver = multistep_of(pipe.scheduler)

    @property
    def multistep(self) -> bool:
        return self._solver is not None

    @property
    def pace(self) -> float:
        return self.base.pace

    def beside(self, recipes: Mapping[str, Sequence[Pass]]) -> PipelineEngine:
        """An engine for other recipes that shares the base of this one."""
        other = PipelineEngine(self.pipe, recipes, self.steps, self.calls.more, output=self.output)
        other.base, other.fewest, other.work = self.base, self.fewest, self.work
        return other

    def effective(self, row: Row) -> tuple[Pass, ...]:
        """The passes that a row will really run, once its plan is repaired.

        Raises:
            StackError: its passes cannot work on this model.
        """
        return tuple(p for p in self._stack(row).plan.passes() if p.stage in row.passes) if row.passes else ()

    def repairs(self, row: Row) -> list[str]:
        """What the plan changed about a row."""
        return [f"{f.stage}: {f.what}; {f.repair}" for f in self._stack(row).plan.findings if f.repair]

    def prepare(
        self,
        prompt: str,
        compile_base: bool = True,
        chosen: tuple[str, dict[str, float]] | None = None,
        controls: bool = True,
    ) -> None:
        """Count the work of one denoiser call, and choose the base: eager, or compiled if that is faster.

        Args:
            controls: there are some, which may have another kernel.
            chosen: mode and seconds per step of the base that an earlier run has chosen.
        """
        denoiser, denoisers = denoiser_of(self.pipe), all_denoisers(self.pipe)
        with counting(denoiser, wiring_of(denoiser).blocks(denoiser)) as work:
            self.fewest = self._reaching(denoisers, prompt)
            self.work = work()
        if chosen is not None:
            self.base = chosen_base(denoisers, *chosen)
            self._stacks.clear()
        elif compile_base or (controls and can_be_exact(denoisers)):
            run, steps = partial(self._plain, prompt=prompt, seed=0), max(TRIAL_STEPS, self.fewest)
            self.base = choose_base(
                denoisers, lambda chosen, steps: run(chosen, steps=steps), self.device, steps, compile_base, controls
            )
            self._stacks.clear()

    def _reaching(self, denoisers: Mapping[str, nn.Module], prompt: str) -> int:
        """The number of steps, doubled from a few on, with which all these denoisers are called."""
        called: set[str] = set()
        handles = [
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
            for name, module in denoisers.items()
        ]
        steps = WARM_UP_STEPS
        try:
            self._plain(denoisers, prompt, 0, steps)
            while len(called) < len(denoisers) and steps < self.steps:
                steps = min(2 * steps, self.steps)
                self._plain(denoisers, prompt, 0, steps)
        finally:
            for handle in handles:
                handle.remove()
        return steps

    def explain(self, recipe: str) -> str:
        """The plan of a whole recipe, in words."""
        return self._of(self._recipes[recipe], self.steps).explain()

    def warm_up(self, row: Row, prompt: str) -> None:
        if row.role == "stack" and row.passes:
            stack = self._stack(row)
            try:
                self._short(stack, prompt)
            finally:
                stack.undo()
        else:
            # A peer skips nothing on two steps, and what it does on skipped ones has to be warm too.
            steps = row.steps if row.role == "peer" else self.fewest
            self._plain(self._denoisers(row, steps), prompt, 0, steps, is_multistep(row.name))

    def generate(self, row: Row, prompt: str, seed: int) -> Generation:
        if row.role == "stack" and row.passes:
            return self._stacked(row, prompt, seed)
        denoisers = self._denoisers(row, row.steps)
        with PeakMemory(self.device) as peak:
            drawn, seconds = timed(
                lambda: self._plain(denoisers, prompt, seed, row.steps, is_multistep(row.name)), self.device
            )
        kinds = () if row.role == "peer" else ("full",) * row.steps  # what a peer's steps ran is not known here
        return Generation(_picture(drawn), seconds, kinds, peak_bytes=peak.bytes)

    def _stacked(self, row: Row, prompt: str, seed: int) -> Generation:
        stack = self._stack(row)
        stack.apply()
        try:
            if self.device.type != "cpu" and stack.plan.facts_after.compiled:
                for _ in range(CAPTURES):
                    self._short(stack, prompt)
            planned = stack.plan.facts_after.asked
            with PeakMemory(self.device) as peak:
                run = partial(self.calls.make, stack, [prompt], seed, planned, self.output)
                drawn, seconds = timed(run, self.device)
            report = stack.report()
            steps = report.leading
            return Generation(
                picture=_picture(drawn),
                seconds=seconds,
                kinds=tuple(step.kind for step in steps),
                computed=tuple(step.computed for step in steps),
                sigmas=tuple(step.sigma for step in steps),
                errors=tuple(step.error for step in steps),
                density=_density(stack, report),
                cache_bytes=report.cache_bytes,
                peak_bytes=peak.bytes,
                warnings=tuple(report.warnings),
            )
        finally:
            stack.undo()

    def _short(self, stack: Stack, prompt: str) -> None:
        """As few steps as run what a whole call runs: with fewer the plan is another one."""
        self.calls.make(stack, [prompt], 0, min(stack.plan.facts_after.asked, max(FEWEST_STEPS, self.fewest)))

    def _plain(
        self, denoisers: Mapping[str, nn.Module], prompt: str, seed: int, steps: int, multistep: bool = False
    ) -> torch.Tensor:
        """A picture without any pass."""
        install = Installer()
        try:
            for name, denoiser in denoisers.items():
                if denoiser is not vars(self.pipe)[name]:
                    install.set_attribute(self.pipe, name, denoiser)
            if multistep:
                install.set_attribute(self.pipe, "scheduler", self._solver)
            return self.calls.make(self.pipe, [prompt], seed, steps, self.output)
        finally:
            install.rollback()

    def _denoisers(self, row: Row, steps: int) -> Mapping[str, nn.Module]:
        """What a row without a stack calls, so many times per picture."""
        if row.role == "peer":
            return {name: self._under_peer(row, one, steps) for name, one in all_denoisers(self.pipe).items()}
        if row.role == CONTROL:
            return self.base.controls
        return all_denoisers(self.pipe) if row.name == BASE_EAGER else self.base.denoisers

    def _under_peer(self, row: Row, denoiser: nn.Module, steps: int) -> nn.Module:
        copy = compiled({"": denoiser})[""] if self.base.mode == COMPILED else stand_in(denoiser)
        self._peers[row.name].put(copy, steps)
        return copy

    def _stack(self, row: Row) -> Stack:
        key = (row.recipe, row.passes)
        if key not in self._stacks:
            stack = self._of([p for p in self._recipes[row.recipe] if p.stage in row.passes], row.steps)
            if self.base.mode == COMPILED and Compile.stage not in row.passes:
                stack.compile()
            self._stacks[key] = stack
        return self._stacks[key]

    def _of(self, passes: Sequence[Pass], steps: int) -> Stack:
        stack = Stack(self.pipe, steps=steps)
        for one in passes:
            stack.add(one)
        return stack


def _density(stack: Stack, report: Report) -> float:
    """Share of the attention that was computed, as counted while it ran; as planned where nothing counted."""
    found = [figures for stage, figures in report.passes.items() if stage.split(" on ")[0] == SparseAttention.stage]
    calls = [figures["sparse_calls"] + sum(figures["dense_calls"].values()) for figures in found]
    if not sum(calls):
        return stack.plan.facts_after.attention_density
    return sum(n * figures["density"] for n, figures in zip(calls, found, strict=True) if n) / sum(calls)


def _picture(drawn: torch.Tensor) -> torch.Tensor:
    return drawn[0].detach().float().cpu()
