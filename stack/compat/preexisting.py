"""What passes have to say of things that other libraries have put on the model. Pure."""

from __future__ import annotations

from ..core.facts import Facts
from ..core.passes import Finding
from ..core.rule import Rule
from ..models.preexisting import CACHE, COMPILED, FUSED, LORA, OFFLOADED, PARALLEL
from .rules.adapters import FUSED_PROJECTIONS, UNMERGED_LORA
from .rules.compilers import COMPILED_BEFORE, SPLIT_TOKENS, TWO_CACHES
from .rules.quantization import OFFLOADED_MODULES


def under_linears(facts: Facts, stage: str) -> list[Finding]:
    """For a pass that changes linears by their place."""
    merge = "pipe.fuse_lora(), then pipe.unload_lora_weights()"
    split = "unfuse_qkv_projections()"
    return _refused(facts, stage, {LORA: (UNMERGED_LORA, merge), FUSED: (FUSED_PROJECTIONS, split)})


def offloaded(facts: Facts, stage: str) -> list[Finding]:
    """For a pass that exchanges modules or writes to weights."""
    return _refused(
        facts, stage, {OFFLOADED: (OFFLOADED_MODULES, "load it without; quantize() and freeze() free memory too")}
    )


def compiled(facts: Facts, stage: str) -> list[Finding]:
    """For a pass whose decisions must not be traced."""
    return _refused(facts, stage, {COMPILED: (COMPILED_BEFORE, "load it uncompiled, and add .compile() to the stack")})


def cached(facts: Facts, stage: str) -> list[Finding]:
    """For a cache."""
    return _refused(facts, stage, {CACHE: (TWO_CACHES, "transformer.disable_cache()")})


def split_tokens(facts: Facts, stage: str, instead: str) -> list[Finding]:
    """For a cache that has to see all tokens of a block; `instead` of it something else is to be tried."""
    return _refused(facts, stage, {PARALLEL: (SPLIT_TOKENS, instead)})


def _refused(facts: Facts, stage: str, against: dict[str, tuple[Rule, str]]) -> list[Finding]:
    return [
        Finding.of(rule, stage, f"the model carries {name}", repair=hint, fatal=True)
        for name, (rule, hint) in against.items()
        if name in facts.carries
    ]
