"""What every fitted thing says of the model it was fitted on, so that it is never used on another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.errors import StackError
from ..core.facts import Facts
from ..core.files import reason, whole
from ..core.validate import shown


@dataclass(frozen=True, eq=False)
class Fitted(ABC):
    """Something fitted on one model.

    Attributes:
        family, blocks, width: of that model.
        made_under: adapters, precision and sparsity it was fitted under, see `stack.compat.calibrated_for`.
    """

    family: str
    blocks: int
    width: int
    made_under: tuple[str, ...] = field(default=(), kw_only=True)

    def misfit(self, facts: Facts) -> str:
        """What about it does not fit a model, in words; "" if it fits."""
        mine = (self.family, self.blocks, self.width)
        here = (facts.family, facts.blocks, facts.width)
        if mine == here:
            return ""
        words = "{} with {} blocks of width {}"
        return f"fitted on {words.format(*mine)}, this is {words.format(*here)}"

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file."""

    def _write(self, path: str | Path, tensors: dict[str, torch.Tensor], **more: str) -> None:
        about = {"family": self.family, "blocks": str(self.blocks), "width": str(self.width), **more}
        about["made_under"] = "\n".join(self.made_under)
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with whole(Path(path)) as made:
            save_file(plain, made, metadata=about)


def read(path: str | Path, what: str, how: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Attributes by name, and tensors, of a safetensors file that `Fitted._write` wrote.

    Args:
        what, how: the thing and how to get one, for the error.

    Raises:
        StackError: no such file, or one that says of no model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError, ValueError) as error:
        raise StackError(f"no {what} in {path} ({reason(error)}): {how} writes them") from None
    if {"family", "blocks", "width"} - about.keys():
        raise StackError(f"{path} holds no {what}: expected a file that {how} wrote")
    made_under = tuple(about["made_under"].split("\n")) if about.get("made_under") else ()
    if not (about["blocks"].isdecimal() and about["width"].isdecimal()):
        raise StackError(f"{path}: expected whole numbers of blocks and width, got {shown(about)}")
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
        raise StackError(f"{path}: {broken[0]}: expected finite numbers, got NaN or infinity")
    numbers = {name: int(about[name]) for name in ("blocks", "width")}
    return {**about, **numbers, "made_under": made_under}, tensors
