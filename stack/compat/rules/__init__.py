"""Every known clash as data, by subject: `ditstack rules`, and the headings of `docs/composability.md`."""

from __future__ import annotations

from ...core.errors import choose
from ...core.rule import Rule
from .adapters import ADAPTERS
from .compilers import COMPILERS
from .quantization import QUANTIZATION
from .rounded_caches import ROUNDED_CACHES
from .sage import SAGE
from .solver import SOLVER
from .sparse import SPARSE
from .state import STATE
from .steps import STEPS

SUBJECTS: dict[str, tuple[Rule, ...]] = {
    "Adapters": ADAPTERS,
    "Quantization": QUANTIZATION,
    "Caches on quantized models": ROUNDED_CACHES,
    "Caches, schedules and few steps": STEPS,
    "Solver": SOLVER,
    "Sparse attention": SPARSE,
    "8-bit attention": SAGE,
    "Compilers, hooks and other caches": COMPILERS,
    "Cached state": STATE,
}
RULES: dict[str, Rule] = {rule.name: rule for rules in SUBJECTS.values() for rule in rules}


def rule_named(name: str) -> Rule:
    """A rule by its name.

    Raises:
        StackError: there is none of this name.
    """
    if name not in RULES:
        raise choose("rule", name, list(RULES))
    return RULES[name]


def list_rules() -> list[Rule]:
    """Every known clash, by subject."""
    return list(RULES.values())
