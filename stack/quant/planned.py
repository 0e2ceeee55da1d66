"""Bytes of weights that a quantization would leave, known from names and sizes of linears alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.facts import Facts
from .quantize import Quantize
from .schemes import KEEP, SCHEMES, Scheme
from .selection import Choice


@dataclass(frozen=True)
class PlannedWeights:
    """What quantization would do to the weights.

    Attributes:
        converted: paths of the linears that it rounds.
        before, after: bytes of their weights.
    """

    converted: frozenset[str]
    before: int
    after: int


def planned_weights(quantize: Quantize, facts: Facts) -> PlannedWeights:
    """The linears that would be rounded, and their bytes. Scales are counted in the model's dtype.

    Raises:
        StackError: see `Quantize.verdicts`.
    """
    chosen = [choice for choice in quantize.verdicts(facts) if choice.kept is None]
    item = facts.item_bytes
    before = sum(choice.shape[0] * choice.shape[1] * item for choice in chosen)
    after = sum(stored_bytes(choice, choice.scheme, item) for choice in chosen)
    if quantize.ends == KEEP:
        after += before
    elif quantize.ends:
        after += sum(stored_bytes(choice, SCHEMES[quantize.ends], item) for choice in chosen)
    return PlannedWeights(frozenset(choice.path for choice in chosen), before, after)


def stored_bytes(choice: Choice, scheme: Scheme, item: int) -> int:
    """Bytes of one weight (out, in) under a scheme: its values and scales, and the lowest level of 4-bit integers.

    Args:
        item: bytes of a scale.
    """
    outputs, inputs = choice.shape
    groups = -(-inputs // scheme.group) if scheme.group else 1
    padded = groups * scheme.group if scheme.group else inputs
    per_group = 2 if scheme.weight_bits == 4 and scheme.kind == "int" else 1
    return outputs * padded * scheme.weight_bits // 8 + outputs * groups * per_group * item
