"""`ditstack explain` as a function: what a stack would do to a model, in words and as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .core.plan import Plan
from .loading import load
from .recipe import Recipe, recipe_of
from .reference.unloaded_words import asked, told
from .stack import Stack

DEFAULT_MODEL = "shapes-flux"


@dataclass(frozen=True)
class Explanation:
    """A plan that was made and not carried out. Printed, it is its text."""

    recipe: str
    model: str
    plan: Plan
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Passes in running order, findings, and the text; plain values."""
        passes = [{"stage": stage.run.stage, "words": stage.run.describe(stage.before)} for stage in self.plan.stages]
        findings = [
            {"stage": f.stage, "what": f.what, "why": f.why, "repair": f.repair, "note": f.note, "rule": f.rule}
            for f in self.plan.findings
        ]
        steps = self.plan.facts_after.steps
        return {
            "recipe": self.recipe, "model": self.model, "steps": steps, "passes": passes, "findings": findings,
            "text": self.text,
        }  # fmt: skip

    def __str__(self) -> str:
        return self.text


def explain(
    recipe: Recipe | str | Path,
    model: str | None = None,
    *,
    steps: int | None = None,
    device: str | None = None,
    size: str | None = None,
    frames: int | None = None,
    assume: str | None = None,
    config: str | Path | None = None,
) -> Explanation:
    """Plan a recipe for a model: order, reasons, clashes and repairs. Nothing is changed.

    A model with a published configuration or a saved one (`config`) needs no weights; any other is loaded.

    Args:
        recipe: see `stack.recipe.recipe_of`.
        model, size, frames, assume, config, steps, device: see `stack.reference.unloaded_words.asked`.

    Raises:
        StackError: no such recipe or model, or the plan is refused.
    """
    chosen = recipe_of(recipe)
    found = asked(chosen, model, None if config is None else Path(config), size, frames, assume, steps, device)
    if found is not None:
        return Explanation(chosen.name, found.model.repo, found.plan, told(found))
    name = model or DEFAULT_MODEL
    stack = Stack.from_recipe(chosen, load(name, device=device), steps=steps)
    return Explanation(chosen.name, name, stack.plan, stack.explain())
