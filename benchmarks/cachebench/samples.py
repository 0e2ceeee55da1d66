"""Features of a row's samples, kept on disk batch by batch, and the distances between two sets of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stack.core.errors import StackError
from stack.measure.frechet import frechet_distance

from .record import plain


@dataclass
class Samples:
    """Features (N, D) of pictures or (N, F, D) of clips, in the order of the samples' numbers."""

    path: Path
    protocol: dict[str, Any]
    features: torch.Tensor | None = None

    @classmethod
    def open(cls, path: Path, protocol: dict[str, Any]) -> Samples:
        """Go on with a file, or begin one.

        Raises:
            StackError: the file holds samples of another protocol; it is not overwritten.
        """
        protocol = plain(protocol)
        if not path.is_file():
            return cls(path, protocol)
        known = torch.load(path, weights_only=True)
        if known["protocol"] != protocol:
            raise StackError(f"{path} holds samples of other settings: expected the same, or another --out")
        return cls(path, protocol, known["features"])

    @property
    def count(self) -> int:
        return 0 if self.features is None else len(self.features)

    def append(self, more: torch.Tensor) -> None:
        """Keep a batch; the file is complete at every moment."""
        self.features = more if self.features is None else torch.cat([self.features, more])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save({"protocol": self.protocol, "features": self.features}, part)
        part.replace(self.path)


def motion(features: torch.Tensor) -> torch.Tensor:
    """Differences of consecutive frames' features, (N (F - 1), D), as `stack.measure.frechet.t_fid` takes them."""
    return features.diff(dim=1).flatten(0, 1)


def distances(row: str, own: torch.Tensor, references: Mapping[str, torch.Tensor | None]) -> dict[str, Any]:
    """Frechet distances of a row's features to each reference's.

    References are cut to the row's own number, since a distance depends on it. Clips: t-FID beside FID.
    """
    line: dict[str, Any] = {"row": row, "samples": len(own)}
    for name, reference in references.items():
        if reference is None or len(reference) < len(own):
            line[name] = None
            continue
        cut = reference[: len(own)]
        line[name] = frechet_distance(own.flatten(0, -2), cut.flatten(0, -2))
        if own.ndim == 3:
            line[f"t_{name}"] = frechet_distance(motion(own), motion(cut))
    return line


def merged(path: Path, protocol: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These lines, and those of a record's other rows, if it is of this protocol; in the record's order."""
    record = json.loads(path.read_text()) if path.is_file() else {"protocol": None}
    known = {line["row"]: line for line in record["rows"]} if record["protocol"] == plain(protocol) else {}
    return list((known | {line["row"]: line for line in lines}).values())
