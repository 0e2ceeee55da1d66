"""What an analysis of a model with approximations depends on: it is dropped when one of these changes."""

from __future__ import annotations

from ...attention.sage_attn import SageAttention
from ...attention.sparse_attn import SparseAttention
from ...quant.quantize import Quantize
from ...runtime.stack_like import StackLike

# After these a step computes something else than the model.
APPROXIMATE = (Quantize.stage, SageAttention.stage, SparseAttention.stage)
FACTS = ("family", "machine", "dtype", "blocks", "width", "adapters", "weight_bits", "activation_bits", "quantized_by")


def dependencies(stack: StackLike, kinds: tuple[str, ...] = (Quantize.stage,)) -> dict[str, str]:
    """The facts behind the passes of these stages, and the passes themselves, as text by name."""
    plan = stack.plan
    stages = [stage for stage in plan.stages if stage.run.stage in kinds]
    facts = stages[-1].after if stages else plan.facts
    values = {name: str(getattr(facts, name)) for name in FACTS}
    for stage in stages:
        values[stage.run.stage] = str(stage.run)
        if isinstance(stage.run, Quantize):
            values["feedback"] = stage.run.rounded.source if stage.run.rounded else "none"
    return values
