"""How much of an adapter's update is left after rounding, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..bounds import rounding_share
from ..core.errors import StackError
from ..distill.adapter import Adapter
from ..distill.find import fetched
from ..distill.load import components_of, load_updates
from ..distill.lora import LowRank
from ..distill.stage import AdapterStage
from ..quant.formats import load, store
from ..quant.quantize import Quantize
from ..quant.schemes import Scheme
from ..runtime.stack_like import StackLike


@dataclass(frozen=True)
class Survival:
    """Shares of an update, 0 to about 1, weighted by the energy that each linear has of it.

    Attributes:
        adapter: its name.
        beside: whether the plan keeps it as a branch of its own, so that nothing of it is rounded.
        rounded_to: the scheme of the plan's quantization, or else the weights' type.
        fused: what is left if it is added in fp32 first, and the sum is rounded then.
        merged: what is left if it is added to weights that are rounded already; None where no pass rounds.
        worst: path of the linear that keeps least of it when fused, and what that keeps.
        packed: linears whose weights another library holds rounded: nothing can be merged into them, and no share says
            anything of them.
    """

    adapter: str
    beside: bool
    rounded_to: str
    fused: float
    merged: float | None
    worst: tuple[str, float]
    packed: int

    def __str__(self) -> str:
        how = "kept beside the weights: nothing of it is rounded" if self.beside else "fused before rounding"
        lines = [f"{self.adapter}: {how}"]
        if self.packed:
            lines.append(f"{self.packed} linears hold weights that are rounded already: it is not merged into them")
        if self.worst[0]:
            path, least = self.worst
            lines.append(f"fused, then rounded to {self.rounded_to}: {self.fused:.1%} is left ({path}: {least:.1%})")
        if self.merged is not None:
            lines.append(f"merged into {self.rounded_to} weights: {self.merged:.1%} would be left")
        return "\n  ".join(lines)


def surviving_updates(stack: StackLike) -> list[Survival]:
    """What rounding leaves of the update of each adapter in the plan. Reads weights, changes nothing.

    Every linear is rounded as the plan's quantization rounds it, by the native grid of its scheme; one that stays in
    floating point is rounded to the weights' own type.

    Returns:
        One entry per adapter that has weights, in running order.

    Raises:
        StackError: the stack is applied, so that the update is on the model already; no adapter with weights is in the
            plan; or its weights are missing or do not fit.
    """
    with stack.lock:
        if stack.applied:
            raise StackError("surviving_updates() looks at weights without the update: undo() the stack first")
        plan = stack.plan
        adapters = [one for one in plan.passes() if isinstance(one, AdapterStage) and one.updates]
        if not adapters:
            raise StackError("no adapter with weights here: expected .distill(name)")
        quantize = next((one for one in plan.passes() if isinstance(one, Quantize)), None)
        schemes = _schemes(stack, quantize)
        word = quantize.scheme if quantize is not None else ""
        return [_survival(stack, one, schemes, word) for one in adapters]


def _schemes(stack: StackLike, quantize: Quantize | None) -> dict[str, Scheme]:
    """The scheme of each linear of the denoiser that the plan rounds, by path."""
    if quantize is None:
        return {}
    choices = quantize.choices(stack.denoiser, stack.wiring, stack.facts)
    return {choice.path: choice.scheme for choice in choices if choice.kept is None}


def _survival(stack: StackLike, adapter: AdapterStage, schemes: Mapping[str, Scheme], word: str) -> Survival:
    card = adapter.card
    assert card.weights is not None
    parts = components_of(card, stack.denoiser, stack.pipe)
    packed, shares = 0, []
    for name, updates in load_updates(card, fetched(card), parts, stack.pipe).items():
        for path, update in updates.items():
            weight: Any = parts[name].get_submodule(path)._parameters.get("weight")
            if type(weight) is not nn.Parameter or not weight.is_floating_point():
                packed += 1
                continue
            word = word or str(weight.dtype).removeprefix("torch.")
            scheme = schemes.get(path) if parts[name] is stack.denoiser else None
            shares.append((path, *_shares(weight.detach(), update, card.weights.scale, scheme)))
    energy = sum(entry[1] for entry in shares) or 1.0
    merged = [(entry[1], entry[3]) for entry in shares if entry[3] is not None]
    return Survival(
        adapter=card.name,
        beside=isinstance(adapter, Adapter),
        rounded_to=word,
        fused=sum(entry[1] * entry[2] for entry in shares) / energy,
        merged=sum(one * left for one, left in merged) / (sum(one for one, _ in merged) or 1.0) if merged else None,
        worst=min(((entry[0], entry[2]) for entry in shares), key=lambda each: each[1], default=("", 0.0)),
        packed=packed,
    )


def _shares(
    weight: torch.Tensor, update: LowRank, scale: float, scheme: Scheme | None
) -> tuple[float, float, float | None]:
    """Energy of an update, and what is left of it fused before rounding, and merged into rounded weights (N, K)."""
    delta = update.delta(weight.device) * scale
    energy = float(delta.square().sum())
    fused = (weight.float() + delta).to(weight.dtype)
    if scheme is None:
        return energy, float(rounding_share(weight, fused, delta)), None
    base = _rounded(weight, scheme)
    merged = _rounded((base.float() + delta).to(weight.dtype), scheme)
    left = [float(rounding_share(base, after, delta)) for after in (_rounded(fused, scheme), merged)]
    return energy, left[0], left[1]


def _rounded(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return load(store(weight, scheme), weight.dtype)
