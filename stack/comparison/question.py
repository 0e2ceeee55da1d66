"""What a comparison is asked: stacks, prompts, steps and call arguments, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import StackError
from ..core.passes import Pass
from ..core.validate import RunSteps, Seed, checked
from ..core.versions import versions
from ..models.denoiser import denoiser_of
from ..recipe import Recipe, recipe_of
from ..reference.load import name_of
from ..reference.prompts import Prompts, drawn_prompts
from ..runtime.call_arguments import Call, call_words, own_steps
from ..runtime.pipeline_calls import PipelineCalls
from ..stack import Stack
from .kept import key_of, weights_digest
from .peers import Peer
from .record import Header, machine

Candidate = Recipe | Stack | str | Path
"""What can be compared: a recipe, by its name, its file or itself, or a stack."""
DEFAULT_RECIPE = "fast"
LEAST_STEPS = 2


@dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
        recipes: passes by name, in running order.
        prompts: as the pipeline is given them.
        drawn: the prompts are a reference model's own, whose pictures can be read back.
        pairs, compile_base: see `stack.comparison.compare.compare`.
        command: the command line that asks, for the report; two questions that differ in it alone are equal.
    """

    header: Header
    recipes: dict[str, tuple[Pass, ...]]
    prompts: list[Any]
    drawn: bool
    call: Call
    peers: Sequence[Peer]
    pairs: bool
    compile_base: bool
    command: str = ""

    def key(self, denoiser: nn.Module) -> str:
        """Equal for equal questions about equal weights, on the same machine with the same libraries."""
        return key_of({
            "header": vars(self.header), "passes": self.recipes, "call": self.call, "pairs": self.pairs,
            "peers": [peer.name for peer in self.peers], "compile": self.compile_base,
            "weights": weights_digest(denoiser), "machine": machine(self.header.device), "versions": versions(),
        })  # fmt: skip


def asked(
    pipe: Any,
    recipes: Candidate | Sequence[Candidate] | None,
    prompts: Prompts,
    steps: int | None,
    seed: int,
    name: str | None,
    call: Call,
    peers: Sequence[Peer],
    pairs: bool,
    compile_base: bool,
) -> Question:
    """The question, with what was left open filled in; see `stack.comparison.compare.compare`.

    Raises:
        StackError: fewer than one prompt or two steps, recipes of one name, or arguments that the pipeline refuses.
    """
    chosen = _named(recipes if recipes is not None else DEFAULT_RECIPE)
    wanted = plain_steps(chosen.values(), pipe) if steps is None else checked(RunSteps, steps, "steps")
    if wanted < LEAST_STEPS:
        raise StackError(f"steps must be at least {LEAST_STEPS}, got {wanted}: the controls need room below the base")
    model = name or name_of(pipe) or _source(pipe)
    checked(Seed, seed, "seed")
    texts = drawn_prompts(pipe, prompts, seed, model)
    PipelineCalls(pipe, call).check(texts, 0)
    denoiser = denoiser_of(pipe)
    header = Header(
        model, pipe.device.type, str(denoiser.dtype).removeprefix("torch."), tuple(map(str, texts)), wanted, seed,
        tuple(chosen), call_words(call),
    )  # fmt: skip
    passes = {name: tuple(one.passes() if isinstance(one, Recipe) else one.passes) for name, one in chosen.items()}
    if empty := [name for name, some in passes.items() if not some]:
        raise StackError(f"{', '.join(empty)} has no passes: expected at least one to compare, such as cache('svd')")
    return Question(header, passes, texts, isinstance(prompts, int), call, peers, pairs, compile_base)


def _named(given: Candidate | Sequence[Candidate]) -> dict[str, Recipe | Stack]:
    """Recipes and stacks by name."""
    several = [given] if isinstance(given, Recipe | Stack | str | Path) else list(given)
    loaded = [one if isinstance(one, Stack) else recipe_of(one) for one in several]
    found: dict[str, Recipe | Stack] = {}
    for number, one in enumerate(loaded, 1):
        title = one.name if isinstance(one, Recipe) else "stack" if len(loaded) == 1 else f"stack-{number}"
        if title in found:
            raise StackError(f"recipe {title!r} is given twice: expected different names")
        found[title] = one
    if not found:
        raise StackError("expected a recipe or a stack to compare, got none")
    return found


def plain_steps(chosen: Iterable[Recipe | Stack], pipe: Any) -> int:
    """Steps of the model without a stack: the most that one of these is for, or the pipeline's own where none says.

    A distilled one says how few it takes, not what the base takes.
    """
    plain = [
        (one.steps or own_steps(pipe)) if isinstance(one, Recipe) else one.facts.steps
        for one in chosen
        if "distill" not in (one.stages if isinstance(one, Recipe) else [p.stage for p in one.passes])
    ]
    return max(plain) if plain else own_steps(pipe)


def _source(pipe: Any) -> str:
    """The hub id or the folder's name of what a pipeline was loaded from, or its class."""
    path = str(pipe.name_or_path or "")
    return os.path.basename(os.path.normpath(path)) if os.path.isdir(path) else path or type(pipe).__name__
