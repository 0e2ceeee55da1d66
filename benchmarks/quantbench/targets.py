"""What the issue of this benchmark asks for, computed from its own rows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import Target

Row = Mapping[str, Any]
RIVALS = ("torchao", "bitsandbytes", "quanto")


def linear_targets(rows: Sequence[Row]) -> list[Target]:
    """Bare linears: gain over bf16 at the worst size, the lead over other libraries' 8-bit linears, bytes."""
    targets = []
    for name in ("int8 native", "int8 native compiled"):
        gains = [row["over bf16"] for row in rows if row["linears"] == name]
        if gains:
            targets.append(Target(f"{name}: linears over bf16, worst size", min(gains), 1.6))
    targets += _fastest(rows, "linears", ("width", "tokens"))
    limits = {"int8": 0.55, "nf4": 0.32, "int4-weight": 0.32}
    for scheme, limit in limits.items():
        shares = [row["bytes over bf16"] for row in rows if row["linears"] == f"{scheme} native"]
        if shares:
            targets.append(Target(f"{scheme}: bytes over bf16, by storage", max(shares), limit, "<="))
    return targets


def denoiser_targets(rows: Sequence[Row]) -> list[Target]:
    """Whole denoisers: share of Amdahl's limit, error in every bin, the lead over other libraries."""
    targets = []
    for name in ("int8", "int8 compiled"):
        for row in rows:
            if row["variant"] == name and row["of the limit"] is not None:
                targets.append(Target(f"{row['model']}, {name}: share of Amdahl's limit", row["of the limit"], 0.9))
    for row in rows:
        if row["variant"] == "int8" and row["ms"] and "random" not in row["model"]:
            what = f"{row['model']}, int8: error in the worst sigma bin"
            targets.append(Target(what, row["worst error"], 0.02, "<="))
            if row.get("accuracy") is not None:
                lost = row["base accuracy"] - row["accuracy"]
                targets.append(Target(f"{row['model']}, int8: accuracy lost", lost, 0.01, "<="))
    return targets + _fastest(rows, "variant", ("model",))


def _fastest(rows: Iterable[Row], column: str, same: tuple[str, ...]) -> list[Target]:
    """Our faster int8 over the fastest of other libraries', at the worst place."""
    places: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["ms"] and row[column].startswith("int8") and not row[column].startswith("int8-"):
            places.setdefault(tuple(row[key] for key in same), {})[row[column]] = row["ms"]
    leads = []
    for times in places.values():
        theirs = [ms for name, ms in times.items() if any(rival in name for rival in RIVALS)]
        ours = [ms for name, ms in times.items() if not any(rival in name for rival in RIVALS)]
        if theirs and ours:
            leads.append(min(theirs) / min(ours))
    what = "bare linears" if column == "linears" else "whole denoisers"
    return [Target(f"{what}: our int8 over the fastest library's, worst case", min(leads), 1.0)] if leads else []
