"""`ditstack tune` as a function: a pipeline and limits in, a recipe and what was tried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..calibrated.calibrate import calibrate, held_apart
from ..comparison.compare import taken_off
from ..comparison.question import plain_steps
from ..core.errors import StackError
from ..core.progress import ProgressLine
from ..core.validate import AtLeastOne, NotNegative, RunSteps, Seed, checked
from ..models.denoiser import denoiser_of
from ..recipe import Recipe, recipe_of
from ..reference.prompts import Prompts, searched_prompts
from ..runtime.call_arguments import Call, call_of
from ..runtime.mounted import mounted_on
from ..runtime.pipeline_calls import pipeline_for
from ..stack import Stack
from .front import beats, best, different, finalists, pareto
from .limits import Limits
from .space import FEWEST_STEPS, Space, Stages, space_of
from .study import CALIBRATED, Study, Tried
from .tryout import Asked, Tryout, asked

SEARCH_SHARE = 0.25  # of the time; the rest places full steps and solver steps, and checks on held-out prompts
CALIBRATION, FITTING = 0.1, 0.25  # of the time, for each number of steps of a cache, of the solver
PLACES_SHARE = 0.3  # of the time for the solver; the rest fits its weights
MOST_ROUNDS = 10  # of such a fit
CHECKED = 6  # candidates that are measured on held-out prompts
REPEATED = 30  # candidates in a row that were measured before: the sampler has nothing new to propose
HELD_SEED = 10_000  # added to the seed for held-out prompts
HELD_TIMES = 2  # pictures of each, with other seeds: the median of few pictures differs from that of others
NAME = "tuned"

Tell = Callable[[str], None]
Placing = Callable[[Recipe, Sequence[Any], int, float], Stages]  # recipe, prompts, seed, seconds


@dataclass
class Tuned:
    """What a search came to.

    Attributes:
        recipe: the chosen stack; its notes hold the figures on held-out prompts. None where nothing keeps the limits.
        chosen: the same with its figures on held-out prompts; the nearest to the limits where nothing keeps them.
        checked: every candidate that was measured on held-out prompts, as `finalists` orders them.
        tried: all that was measured on the prompts searched on, each once.
        refused: how many candidates did not run.
        base_seconds: of one picture without a stack, in the rounds of the check.
        base_mode: "eager" or "compiled", whichever was faster without a stack.
        partial: stopped before the check was done.
    """

    limits: Limits
    recipe: Recipe | None = None
    chosen: Tried | None = None
    checked: list[Tried] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    refused: int = 0
    base_seconds: float = 0.0
    base_mode: str = ""
    partial: bool = False

    @property
    def front(self) -> list[Tried]:
        """Checked candidates that no other beats in both time and quality, the fastest first."""
        return pareto(self.checked)


def tune(
    model: Any,
    recipe: Recipe | str | Path | None = None,
    *,
    prompts: Prompts,
    min_psnr: float = 0.0,
    max_lpips: float = 0.0,
    max_error: float = 0.0,
    max_seconds: float = 0.0,
    max_memory: float = 0.0,
    steps: int | None = None,
    seed: int = 0,
    budget: float = 600.0,
    trials: int = 400,
    size: str | None = None,
    frames: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    call: Call | None = None,
    compile_base: bool = True,
    study: str | Path | None = None,
    name: str = "",
    progress: bool = True,
) -> Tuned:
    """Search for the fastest stack within limits (or the best in a time), and check it on held-out prompts.

    The pipeline is left as it was. After Ctrl-C the same study can be continued.

    Args:
        model: a pipeline, or a `Stack` on one, which is taken off meanwhile.
        recipe: passes that every candidate has, such as an adapter; see `stack.recipe.recipe_of`. By default those of
            the stack given as `model`.
        prompts: three or more, see `stack.reference.prompts.searched_prompts`; every third is held out.
        min_psnr, max_lpips, max_error, max_seconds, max_memory: see `stack.tuning.limits.Limits`.
        steps: of the model without a stack; by default the recipe's or the stack's, or the pipeline's own.
        seed, budget, trials: seed of the first prompt; approximate seconds to spend; largest number of candidates.
        size, frames, guidance, negative_prompt, call: see `stack.runtime.call_arguments.call_of`.
        compile_base: try compiled blocks, and use the faster.
        study: a file, or a database's URL, which several machines of one kind may share; None keeps it in memory.
        progress: show one line on stderr.

    Raises:
        StackError: too few prompts, a pipeline that carries a stack, nothing that could be tried on this model, or a
            study of something else.
    """
    pipe, limits = _pipeline(model), Limits(min_psnr, max_lpips, max_error, max_seconds, max_memory)
    _check_numbers(seed, budget, trials)
    search, held = held_apart(searched_prompts(pipe, prompts))
    asked_for = call_of(pipe, size, frames, guidance, negative_prompt, call)
    given = _given(model, recipe)
    fixed = given.to_recipe().stages if isinstance(given, Stack) else given.stages if given else {}
    with taken_off(model), ProgressLine("tune", progress) as line:
        wanted = plain_steps([given] if given else [], pipe) if steps is None else steps
        place = Tryout(pipe, checked(RunSteps, wanted, "steps"), limits, asked_for, compile_base)
        space = _space(place, fixed)
        kept = Study(study, f"{name}: {limits.words}", _protocol(space, limits, search, seed), seed)
        kept.begin(space)
        run = _Search(place, space, kept, limits, asked(search, seed), line.says, progress)
        return _found(run, search, asked(held * HELD_TIMES, seed + HELD_SEED), seed, budget, trials)


def _check_numbers(seed: int, budget: float, trials: int) -> None:
    for hint, value, what in (Seed, seed, "seed"), (NotNegative, budget, "budget"), (AtLeastOne, trials, "trials"):
        checked(hint, value, what)


def _pipeline(model: Any) -> Any:
    """The pipeline that is tuned, or that the given stack is on.

    Raises:
        StackError: a pipeline that carries a stack.
    """
    if isinstance(model, Stack):
        return pipeline_for("tune()", model.pipe)
    pipe = pipeline_for("tune()", model)
    if mounted_on(denoiser_of(pipe)) is not None:
        raise StackError("tune(): the pipeline carries a stack: expected one without, or the stack, Stack.of(pipe)")
    return pipe


def _space(place: Tryout, fixed: Stages) -> Space:
    """What there is to try.

    Raises:
        StackError: nothing.
    """
    space = space_of(place.plan, place.steps, fixed, small=bool(place.limits.max_memory))
    if not (space.schemes or space.sparse or space.methods or space.solver):
        raise StackError("nothing to tune: no pass that could be tried works here; Stack(pipe).explain() says why")
    return space


def _given(model: Any, recipe: Recipe | str | Path | None) -> Recipe | Stack | None:
    """What has the passes of every candidate; None for no such passes."""
    if recipe is not None:
        return recipe_of(recipe)
    return model if isinstance(model, Stack) else None


def _found(run: _Search, search: Sequence[Any], held: Sequence[Asked], seed: int, budget: float, trials: int) -> Tuned:
    """The whole search, or what there is of it after Ctrl-C."""
    found, place = Tuned(run.limits), run.place
    try:
        place.prepare(run.samples, run.tell)
        found.base_mode, found.base_seconds = place.mode, place.base_seconds
        run.search(budget * SEARCH_SHARE, trials)
        if run.limits.on_quality:
            run.place_steps("cache", "count", run.calibrated, search, seed, budget * CALIBRATION)
            run.place_steps("solver", "steps", run.fitted, search, seed, budget * FITTING)
        run.check(held, found)
    except KeyboardInterrupt:
        found.partial = True
    found.tried, found.refused = different(run.study.tried(pruned=True)), run.study.refused
    if found.chosen is not None and not found.chosen.excess:
        found.recipe = _recipe(place, found, found.chosen, (len(search), len(held)))
    return found


def _protocol(space: Space, limits: Limits, prompts: Sequence[Any], seed: int) -> dict[str, Any]:
    """What the figures of a study depend on."""
    asked_for = {"limits": limits.given, "steps": space.steps, "prompts": [str(p) for p in prompts], "seed": seed}
    return {**asked_for, "fixed": dict(space.fixed), "schemes": space.schemes, "methods": space.methods}


@dataclass
class _Search:
    """The parts of one run of `tune`."""

    place: Tryout
    space: Space
    study: Study
    limits: Limits
    samples: Sequence[Asked]
    tell: Tell
    progress: bool

    def search(self, seconds: float, trials: int) -> None:
        """Try what the sampler proposes, for about so many seconds, or until it proposes nothing new."""
        started, repeated = time.monotonic(), 0
        for number in range(trials):
            left = seconds - (time.monotonic() - started)
            if left <= 0 or repeated == REPEATED:
                break
            self.tell(f"candidate {number + 1}, {self._best_words()}, {left:.0f} s of the search left")
            repeated = repeated + 1 if self._one() else 0

    def _one(self) -> bool:
        """Try one candidate; True where it was measured before."""
        trial, stages = self.study.ask(self.space)
        known = self.study.same(stages)
        try:
            figures = known.figures if known else self.place.figures(stages, self.samples, self.limits.hopeless)
        except (StackError, RuntimeError) as error:
            self.study.refuse(trial, (str(error).strip().splitlines() or [type(error).__name__])[0][:200])
            return False
        except KeyboardInterrupt:
            self.study.leave(trial)
            raise
        pruned = figures.samples < len(self.samples)
        self.study.tell(trial, figures, self.limits.excess(figures), self.limits.cost(figures), pruned)
        return known is not None

    def _best_words(self) -> str:
        chosen = best(self.study.tried(), self.limits)
        if chosen is None:
            return "none measured yet"
        return f"best so far {chosen.figures.speedup:.2f}x" + (" but beyond the limits" if chosen.excess else "")

    def place_steps(
        self, stage: str, option: str, place: Placing, prompts: Sequence[Any], seed: int, seconds: float
    ) -> None:
        """Place the steps of the best stack with a cache or a solver, then of one step fewer, and again while that
        keeps the limits and fewer steps, not placed, are not far beyond them. Where the stage is given, or a stack
        without it is faster and as good, it stays as it is.

        Args:
            option: of the stage, how many steps it runs in full.
            place: finds their places, in about so many seconds.
        """
        tried = self.study.tried()
        start = best([one for one in tried if option in one.stages.get(stage, {})], self.limits)
        rivals = [one for one in tried if stage not in one.stages]
        if start is None or stage in self.space.fixed or any(beats(one, start) for one in rivals):
            return
        stages, count = start.stages, start.stages[stage][option]

        def placed(number: int) -> bool:
            """Whether so many steps, placed, are within the limits."""
            wanted = {**stages, stage: {**stages[stage], option: number}}
            known = self.study.same(wanted)
            plain = known.figures if known else self.place.figures(wanted, self.samples, self.limits.hopeless)
            if self.limits.hopeless(plain):
                return False
            self.tell(f"placing {number} steps of the {stage}, about {seconds:.0f} s")
            made = place(self.place.recipe(NAME, wanted, "", {}), prompts, seed, seconds)
            figures = self.place.figures(made, self.samples)
            one = Tried(made, figures, self.limits.excess(figures), CALIBRATED)
            self.study.add(one, self.limits.cost(figures))
            return not one.excess

        try:
            for number in range(count, FEWEST_STEPS - 1, -1):
                if not placed(number):
                    break
        except StackError as error:  # too little time for a calibration on this model: what was searched stands
            self.tell(f"steps stay where the {stage} puts them: {error}")

    def calibrated(self, recipe: Recipe, prompts: Sequence[Any], seed: int, seconds: float) -> Stages:
        """The stages with the cache's full steps calibrated."""
        count = recipe.stages["cache"]["count"]
        asked_for: dict[str, Any] = {"seed": seed, "budget": seconds, "progress": self.progress}
        asked_for |= {"call": self.place.call, "full_steps": count}
        return calibrate(self.place.pipe, recipe, prompts=prompts, **asked_for)[0].stages

    def fitted(self, recipe: Recipe, prompts: Sequence[Any], seed: int, seconds: float) -> Stages:
        """The stages with the solver's places searched, and the weights of its steps fitted."""
        stack = Stack.from_recipe(recipe, self.place.pipe, steps=self.place.steps)
        asked_for: dict[str, Any] = {"seed": seed, "progress": self.progress, "call": self.place.call}
        asked_for["wanted"] = self.place.pictures(self.samples)
        if stack.search_places(prompts, budget=PLACES_SHARE * seconds, **asked_for).interrupted:
            raise KeyboardInterrupt
        found = stack.fit_solver(prompts, rounds=MOST_ROUNDS, budget=(1 - PLACES_SHARE) * seconds, **asked_for)
        if found.interrupted:
            raise KeyboardInterrupt
        solver = found.solver
        # Lists, as a recipe's file and a study's database give them back.
        lists = {"places": list(solver.places), "calibrated_for": list(solver.calibrated_for)}
        return {**recipe.stages, "solver": {**solver.options(), **lists}}

    def check(self, samples: Sequence[Asked], found: Tuned) -> None:
        """Measure the best candidates on held-out prompts, in turn with the model without a stack."""
        chosen = finalists(self.study.tried() or self.study.tried(pruned=True), self.limits, CHECKED)
        if not chosen:
            raise StackError("no candidate ran in this time: give more with budget=")
        figures, found.base_seconds = self.place.in_turn([one.stages for one in chosen], samples, self.tell)
        found.checked = [
            replace(one, figures=seen, excess=self.limits.excess(seen))
            for one, seen in zip(chosen, figures, strict=True)
        ]
        found.chosen = best(found.checked, self.limits)


def _recipe(place: Tryout, found: Tuned, chosen: Tried, prompts: tuple[int, int]) -> Recipe:
    """The chosen stack as a recipe."""
    figures = {key: round(value, 3) for key, value in asdict(chosen.figures).items() if isinstance(value, float)}
    notes = {"tuned_for": found.limits.words, "searched_on": prompts[0], "held_out": prompts[1], **figures}
    return place.recipe(NAME, chosen.stages, f"tuned for {found.limits.words}", notes)
