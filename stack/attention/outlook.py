"""What a policy will do to a model of known facts, in numbers and in words. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from ..bounds import dropped_mass_bound
from ..core.facts import Facts
from ..core.progress import counted
from .cost import rate_of
from .dense_kernels import dtype_of
from .maps import Grid
from .producers import STATIC
from .sparsity import SparsityPolicy, third
from .token_order import BY_HEAD, MANY_TOKENS, ORDERS, RASTER

DENSE = "stays dense"


def density_of(policy: SparsityPolicy, facts: Facts) -> float:
    """Share of the scores that a sparse step computes, mean over layers and steps; with a budget, at least."""
    found = [(_density(one, facts), count) for one, count in _by_step(policy, facts.steps)]
    return sum(density * count for density, count in found) / max(1, sum(count for _, count in found))


def why_dense(policy: SparsityPolicy, facts: Facts) -> str:
    """Why no layer would be sparse in any step, or "": of the layer that is nearest to it."""
    policies = sorted((one for one, _ in _by_step(policy, facts.steps)), key=lambda one: one.keep)
    reasons = [_why_dense(one, facts) for one in policies]
    return reasons[0] if all(reasons) and reasons else ""


def shapes(policy: SparsityPolicy, facts: Facts) -> str:
    """What the cost rule says of a model, in one line."""
    if not facts.image_tokens:
        return "tokens unknown: each call is decided by its own shape"
    if reason := why_dense(policy, facts):
        return f"{DENSE}: {reason}"
    grid = _grid(policy, facts)
    lengths = f"{grid.rows} query blocks of {grid.group * grid.key} by {grid.blocks} key blocks of {grid.key}"
    return f"{lengths}: density {'at least ' if policy.budget else ''}{density_of(policy, facts):.2f} on sparse steps"


def by_layer(policy: SparsityPolicy, facts: Facts) -> list[str]:
    """Which layers are sparse in which thirds of the schedule, and why the others are not: a line per group of layers
    that are alike in that. Nothing where no shares by layer are known."""
    if not (policy.layers and facts.image_tokens):
        return []
    groups: dict[tuple[bool, ...], list[str]] = {}
    for layer in policy.layers:
        sparse = tuple(not _why_dense(policy.of_third(layer, part), facts) for part in range(3))
        groups.setdefault(sparse, []).append(layer)
    return [_group(policy, facts, sparse, groups[sparse]) for sparse in sorted(groups, reverse=True)]


def error_words(policy: SparsityPolicy) -> str:
    """What leaving blocks out may cost."""
    if policy.max_error is not None:
        when = "measured in every call" if policy.budget else "as measured when the shares were fitted"
        return (
            f"error: at most {policy.max_error:.2g} of the outputs of sampled queries, {when}; for the others an "
            "estimate"
        )
    lost = 1 - policy.keep if policy.max_mass is None else policy.max_mass
    most = dropped_mass_bound(lost, 1.0)
    return (
        f"error: an output that loses {lost:.0%} of its attention is off by at most {most:.2f} times the spread of "
        f"its values (bound); {'what is farthest' if policy.producer in STATIC else 'what loses least'} is left out"
    )


def order_words(policy: SparsityPolicy, facts: Facts) -> str:
    """In which order the latent's tokens are cut into blocks."""
    order = policy.order_of(facts.image_tokens, facts.steps)
    if order != RASTER and (reason := facts.lacks.get("grid")):
        return f"tokens are cut into blocks as they lie, their grid is not known: {reason}"
    if order == BY_HEAD:
        return (
            f"each head has its tokens in the order that serves it best ({', '.join(ORDERS)}), tried once in a request"
        )
    words = f"tokens are cut into blocks in {order} order"
    unknown = policy.order_of(MANY_TOKENS, facts.steps) == BY_HEAD and not facts.image_tokens
    return words + (f", from {MANY_TOKENS:,} on in the one that serves each head best" if unknown else "")


def spans(paths: Iterable[str]) -> str:
    """Paths in short, those that differ in one number together: "blocks.0-3, 7.attn"."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for path in paths:
        before, number, behind = re.fullmatch(r"(\D*)(\d*)(.*)", path).groups()  # type: ignore[union-attr]  # any path matches
        numbers.setdefault((before, behind), []).extend([int(number)] if number else [])
    found = []
    for (before, behind), known in numbers.items():
        runs = groupby(enumerate(sorted(known)), key=lambda pair: pair[1] - pair[0])
        ends = [[each[1] for each in run] for _, run in runs]
        words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)
        found.append(f"{before}{words}{behind}")
    return ", ".join(found)


def _group(policy: SparsityPolicy, facts: Facts, sparse: tuple[bool, ...], layers: list[str]) -> str:
    """One line about layers that are sparse in the same thirds."""
    policies = [(policy.of_third(layer, part), sparse[part]) for layer in layers for part in range(3)]
    keeps = [one.keep for one, taken in policies if taken]
    whose = f"{counted(len(layers), 'layer')} ({spans(layers)})"
    thirds = " and ".join(name for name, taken in zip(("first", "middle", "last"), sparse, strict=True) if taken)
    line = f"{whose} {'sparse' if all(sparse) else f'sparse in the {thirds} third' if thirds else 'never sparse'}"
    line += f", keeping {100 * min(keeps):.0f} to {100 * max(keeps):.0f} %" if keeps else ""
    dense = [one for one, taken in policies if not taken]
    return line + (f"; dense: {_why_dense(min(dense, key=lambda one: one.keep), facts)}" if dense else "")


def _by_step(policy: SparsityPolicy, steps: int) -> list[tuple[SparsityPolicy, int]]:
    """The policies of all layers in the steps that may be sparse, each with how many steps it is for."""
    parts = Counter(third(step, steps) for step in range(policy.first_steps(steps), steps - policy.last))
    return [(policy.of_third(layer, part), n) for layer in policy.layers or [""] for part, n in parts.items()]


def _grid(policy: SparsityPolicy, facts: Facts) -> Grid:
    return policy.grid(facts.image_tokens, facts.text_tokens, facts.machine.device)


def _why_dense(policy: SparsityPolicy, facts: Facts) -> str:
    """Why a layer is dense by a policy of its own, or ""."""
    tokens = facts.image_tokens, facts.text_tokens
    return policy.dense_shape(*tokens, rate_of(facts.machine, dtype_of(facts)))


def _density(policy: SparsityPolicy, facts: Facts) -> float:
    if not facts.image_tokens:
        return policy.keep
    return 1.0 if _why_dense(policy, facts) else _grid(policy, facts).density(policy.keep)
