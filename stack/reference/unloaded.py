"""A recipe planned for a model that is not there: what it would hold and save, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..caching.cache import Cache
from ..caching.memory import StateSize, state_size
from ..caching.repairs import always_running
from ..core.errors import StackError
from ..core.facts import Facts, Machine
from ..core.plan import Plan, make_plan
from ..distill.stage import AdapterStage
from ..measure.shape_work import ShapeWork, work_at
from ..quant.planned import PlannedWeights, planned_weights
from ..quant.quantize import Quantize
from ..recipe import Recipe
from ..runtime.call_arguments import ASSUMED_STEPS
from .published import Published


@dataclass(frozen=True)
class Savings:
    """The most that passes can save of a run's arithmetic, as factors: 1.0 saves nothing.

    Attributes:
        alone: by stage.
        together: of all of them.
    """

    alone: dict[str, float]
    together: float


@dataclass(frozen=True)
class Unloaded:
    """A recipe's plan for a model without weights.

    Attributes:
        parameters: of one denoiser.
        work: of one call; None where it cannot be inferred, with the reason in `no_work`.
        weights: what quantization makes of them; None without it.
        state: of the cache, per picture and guidance branch; None without one.
        branches: denoiser calls of a step under this plan.
    """

    model: Published
    plan: Plan
    parameters: int
    work: ShapeWork | None
    no_work: str
    weights: PlannedWeights | None
    state: StateSize | None
    branches: int

    @property
    def bytes_before(self) -> int:
        """Of all denoisers' weights, in the model's dtype."""
        return self.parameters * self.plan.facts.item_bytes * self.model.denoisers

    @property
    def bytes_after(self) -> int:
        """Of all denoisers' weights after quantization."""
        saved = self.weights.before - self.weights.after if self.weights else 0
        return self.bytes_before - saved * self.model.denoisers

    @property
    def state_bytes(self) -> int:
        """The most that the cache holds for one picture."""
        return self.state.total * self.branches if self.state else 0


def unloaded(recipe: Recipe, model: Published, machine: Machine, steps: int | None = None) -> Unloaded:
    """Plan a recipe for a model whose weights are not there.

    Args:
        steps: denoiser steps; None takes the recipe's, and 50 where that names none.

    Raises:
        StackError: a pass cannot work on this model, or the configuration is none of its class.
    """
    denoiser = model.new_denoiser()
    facts = model.facts(denoiser, machine, steps or recipe.steps or ASSUMED_STEPS)
    plan = make_plan(facts, recipe.passes())
    work, no_work = _work(denoiser, facts)
    weights = state = None
    for stage in plan.stages:
        if isinstance(stage.run, Quantize):
            weights = planned_weights(stage.run, stage.before)
        elif isinstance(stage.run, Cache):
            state = state_size(stage.run.policy, stage.before)
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return Unloaded(model, plan, parameters, work, no_work, weights, state, _branches(model, plan))


def _work(denoiser: nn.Module, facts: Facts) -> tuple[ShapeWork | None, str]:
    if not facts.image_tokens:
        return None, "the number of its tokens is not known"
    if not facts.lists:
        return None, "no blocks are known of it"
    try:
        return work_at(denoiser, facts.wiring, facts.image_tokens, facts.text_tokens), ""
    except StackError as error:
        return None, str(error)


def _branches(model: Published, plan: Plan) -> int:
    """Calls of a step: one where an adapter was made for no guidance."""
    free = [p.card.guidance for p in plan.passes() if isinstance(p, AdapterStage) and p.card.steps]
    return 1 if any(one.kind == "none" or (one.value or 0.0) <= 1 for one in free) else model.branches


def savings(found: Unloaded) -> Savings:
    """Amdahl's law over the share of the work that each pass touches. A bound: nothing that passes cost is counted.

    Products of fewer bits are taken for as many times as fast; a cached step for free, but for what always runs. What
    decides by itself which steps run (gates) is left out, and so is what a compiler saves.
    """
    plan, work = found.plan, found.work
    if work is None:
        linears, attention, rest, rounded = 1.0, 0.0, 0.0, 0.0
    else:
        whole = work.total.step()
        linears, attention, rest = (
            part / whole for part in (work.total.linears, work.total.attention, work.total.rest)
        )
        rounded = work.share(found.weights.converted) if found.weights else 0.0
    after = plan.facts_after
    alone: dict[str, float] = {}
    if work is not None and found.weights and after.rounds_activations:
        alone["quantize"] = 1 / (1 - rounded * (1 - after.activation_bits / plan.facts.activation_bits))
    if work is not None and after.attention_density < 1:
        alone["sparse_attn"] = 1 / (1 - attention * (1 - after.attention_density))
    if work is not None and after.attention_bits < plan.facts.attention_bits:
        # Its second product is added up in fp16, which some GPUs do in half of the time too.
        share = attention * after.attention_density
        alone["sage_attn"] = 1 / (1 - share * (1 - after.attention_bits / plan.facts.attention_bits))
    saved = [1 - 1 / alone[stage] for stage in alone]  # shares of a full step, of other parts of it each
    inside = linears + attention - sum(saved)
    full, always, outside = _cached(plan)
    step, cached = inside + rest, inside * always + rest * outside
    if full < 1:
        own = (linears + attention) * always + rest * outside
        alone["cache"] = 1 / (full + (1 - full) * own)
    return Savings(alone, 1 / (full * step + (1 - full) * cached))


def decides_itself(plan: Plan) -> bool:
    """Whether the plan's cache finds out while it runs which steps it skips."""
    policies = [p.policy for p in plan.passes() if isinstance(p, Cache)]
    return any(policy.gate or policy.site.decides for policy in policies)


def _cached(plan: Plan) -> tuple[float, float, float]:
    """Share of steps in full; of a cached step, the shares of the blocks and of the rest that run."""
    stage = next((s for s in plan.stages if isinstance(s.run, Cache)), None)
    if stage is None or not isinstance(stage.run, Cache):
        return 1.0, 1.0, 1.0
    policy = stage.run.policy
    if decides_itself(plan):
        return 1.0, 1.0, 1.0
    full = len(policy.full_steps(stage.before)) / stage.before.steps
    return full, always_running(policy, stage.before), 1.0 if "blocks" in policy.site.needs else 0.0
