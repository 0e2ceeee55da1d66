"""Distilled adapters: a LoRA fused into the weights, and the schedule it was made for."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import StackError
from ..facts import Facts
from ..install import Installer
from .base import Applied, Finding, Target

_NAME = "ditstack"


@dataclass(frozen=True)
class Distill:
    """Fuse a LoRA and use its schedule.

    The update is added in fp32 before anything is quantized: merged into an 8-bit weight most of it would be rounded
    away (at |delta| / |W| = 0.3 % only 0.5 % of it survives).

    Attributes:
        adapter: a card in `stack.adapters`, a `.toml` card, a `.safetensors` file or a folder that holds one.
        scale: factor on the update; None takes the card's, or 1.
        steps: steps the adapter is made for; None takes the card's.
        shift: fixed schedule shift it was trained with; None keeps the scheduler.
    """

    adapter: str
    scale: float | None = None
    steps: int | None = None
    shift: float | None = None
    stage: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise StackError(f"steps must be at least 1, got {self.steps}")

    def settings(self) -> dict[str, Any]:
        """Weights, scale, steps and shift, from the card and from what was given here; the latter wins.

        Raises:
            StackError: neither a card nor a file of weights by this name.
        """
        card = _card(self.adapter)
        given = {"scale": self.scale, "steps": self.steps, "shift": self.shift}
        return {"scale": 1.0, "steps": None, "shift": None, **card, **{k: v for k, v in given.items() if v is not None}}

    def describe(self, facts: Facts) -> list[str]:
        s = self.settings()
        lines = [f"{Path(self.adapter).name}, fused in fp32 at scale {s['scale']:g}, before any quantization"]
        if s["steps"]:
            lines.append(f"made for {s['steps']} steps" + (f" at shift {s['shift']:g}" if s["shift"] else ""))
        return lines

    def check(self, facts: Facts) -> list[Finding]:
        if facts.weight_bits >= 16:
            return []
        what = f"the weights are already quantized to {facts.weight_bits} bits"
        return [
            Finding(self.stage, what, "a fused update would be rounded away; load the model unquantized", fatal=True)
        ]

    def facts_after(self, facts: Facts) -> Facts:
        steps = self.settings()["steps"] or facts.steps
        return replace(facts, steps=steps, adapters=(*facts.adapters, Path(self.adapter).stem))

    def apply(self, target: Target, install: Installer) -> Applied:
        s = self.settings()
        count = fuse(target.denoiser, Path(s["weights"]), float(s["scale"]), install)
        if s["shift"] is not None and target.pipe is not None:
            old = target.pipe.scheduler
            new = type(old).from_config(old.config, shift=float(s["shift"]), use_dynamic_shifting=False)
            install.set_attribute(target.pipe, "scheduler", new)
        return Applied(f"{count} linears updated by {Path(self.adapter).name}", details={"linears": count})


def _card(adapter: str) -> dict[str, Any]:
    path = Path(adapter)
    if path.suffix == ".safetensors" or path.is_dir():
        return {"weights": _weights(path)}
    shipped = resources.files("stack.adapters") / f"{adapter}.toml"
    source = path if path.suffix == ".toml" and path.is_file() else shipped
    if not source.is_file():
        raise StackError(
            f"unknown adapter {adapter!r}: expected a shipped card, a .toml card, a .safetensors file or a folder"
        )
    card = tomllib.loads(source.read_text())
    return {**card, "weights": _weights(path.parent / card["weights"])}


def _weights(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise StackError(
            f"no adapter weights at {path}: expected one .safetensors file, found {len(files) if path.is_dir() else 0}"
        )
    return files[0]


def fuse(denoiser: Any, weights: Path, scale: float, install: Installer) -> int:
    """Add a LoRA to the weights of a denoiser, in fp32, and leave no adapter layers behind.

    Returns:
        The number of linears that changed.

    Raises:
        StackError: a key of the file matches no linear of the model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    state = load_file(weights)
    modules = {key.removeprefix("transformer.").split(".lora_")[0] for key in state if ".lora_" in key}
    known = {name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    if not modules or modules - known:
        odd = ", ".join(sorted(modules - known)[:3]) or "no key with '.lora_'"
        raise StackError(f"{weights.name} does not fit this model: expected LoRA keys of its linears, found {odd}")
    prefix = "transformer" if next(iter(state)).startswith("transformer.") else None
    denoiser.load_lora_adapter(dict(state), prefix=prefix, adapter_name=_NAME)
    updates: list[tuple[str, torch.Tensor]] = []
    try:
        for name, layer in denoiser.named_modules():
            if isinstance(layer, BaseTunerLayer):
                updates.append((name, layer.get_delta_weight(_NAME).float() * scale))
    finally:
        denoiser.unload_lora()
    for name, update in updates:
        weight = denoiser.get_submodule(name).weight
        install.set_data(weight, (weight.data.float() + update).to(weight.dtype))
    return len(updates)
