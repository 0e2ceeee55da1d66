"""What FastCache says before it runs: its plan in words, and what it refuses."""

from __future__ import annotations

from ...compat.rules.rounded_caches import FITTED_ELSEWHERE
from ...compat.rules.state import FEWER_TOKENS
from ...core.facts import Facts
from ...core.passes import Finding
from ..cap import size_words
from ..policy import Policy


def describe(p: Policy, facts: Facts) -> list[str]:
    """Lines for `explain()`, after the preset's name."""
    lines = []
    if "gate" in p.parts and p.maps is not None:
        runs = sum(not scale for scale in p.maps.scales(p.carry, p.threshold))
        cost = f"{p.threshold:.1%} of a block's output on average"
        lines.append(f"gate: maps that cost at most {cost} replace it; {runs} of {facts.blocks} blocks always run")
    if "gate" in p.parts and p.adaptive:
        lines.append("where its input changed by at most {:g} + {:g} delta + {:g} t + {:g} t^2".format(*p.adaptive))
    if "tokens" in p.parts:
        lines.append(f"tokens: those that move less than {p.moving:g} of the mean pass all blocks by one linear map")
    if "merge" in p.parts:
        lines.append(f"merge: the tokens that run are merged to {p.merged:.0%}")
    return [*lines, f"the first {p.warmup} steps run whole; saving depends on the picture; {size_words(p, facts)}"]


def check(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """Maps that are missing or of another model are refused: a default in their place would be noise."""
    if p.needs_maps and p.maps is None:
        what = "FastCache replaces blocks by linear maps, and none have been fitted"
        return [Finding(stage, what, repair="stack.fit_maps(prompts), or maps='file.safetensors'", fatal=True)]
    misfit = p.maps.misfit(facts) if p.needs_maps and p.maps is not None else ""
    if misfit:
        what = f"the maps were {misfit}"
        return [Finding.of(FITTED_ELSEWHERE, stage, what, repair="stack.fit_maps(prompts)", fatal=True)]
    if p.fewer_tokens:
        what = "tokens that run lose the others as context, which costs more than it saves: parts=('gate',) does not"
        return [Finding.of(FEWER_TOKENS, stage, what, note=True)]
    return []
