"""What a comparison gives back."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..core.files import json_text
from .table import markdown, print_table
from .verdict import verdict

if TYPE_CHECKING:
    import torch

WIDTH = 150  # columns of the printed table: all of it


@dataclass
class Comparison:
    """A finished (or interrupted) comparison. Printed, it is its verdict and its table.

    Attributes:
        record: the contents of compare.json.
        pictures: (B, 3, H, W) or (B, F, 3, H, W) in [0, 1] by row, for the finished prompts; empty if saved results
            were returned.
        plans: explain() of each recipe's whole stack.
        files: what is in the folder; empty without one.
    """

    record: dict[str, Any]
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return verdict(self.record)

    def markdown(self) -> str:
        """The verdict and the table as markdown."""
        return markdown(self.record)

    def to_json(self) -> str:
        """The record as strict JSON: a figure that is not finite is null."""
        return json_text(self.record)

    def __str__(self) -> str:
        file = io.StringIO()
        print_table(self.record, Console(width=WIDTH, file=file, color_system=None))
        return file.getvalue().rstrip("\n")
