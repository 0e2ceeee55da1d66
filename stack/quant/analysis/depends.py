"""What an analysis of a quantized model depends on: it is dropped when one of these changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...passes.quantize import Quantize

if TYPE_CHECKING:
    from ...builder import Stack

FACTS = ("family", "machine", "dtype", "blocks", "width", "adapters", "weight_bits", "activation_bits", "quantized_by")


def dependencies(stack: Stack) -> dict[str, str]:
    """The facts behind the quantize pass, and the pass itself, as text by name."""
    plan = stack.plan
    stage = next((s for s in plan.stages if isinstance(s.run, Quantize)), None)
    if stage is None:
        return {name: str(getattr(plan.facts, name)) for name in FACTS}
    assert isinstance(stage.run, Quantize)
    mix = stage.run.prepared.describe() if stage.run.prepared else "none"
    return {name: str(getattr(stage.after, name)) for name in FACTS} | {"quantize": str(stage.run), "mix": mix}
