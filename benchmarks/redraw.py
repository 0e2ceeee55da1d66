"""Draws the figures of docs/benchmarks again from their records, without measuring anything.

python benchmarks/redraw.py [--out docs/benchmarks]
Pictures of samples (distill-MODEL.png) are not in a record and stay as they are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from cachebench.plot import draw as draw_caches
from predictability import draw as draw_maps
from predictability_maps import Predictability

from stack.calibration.quant.noise import ErrorSplit
from stack.calibration.quant.plots import plot_floor

RECORDS = Path("docs/benchmarks")


def caches(record: dict[str, Any], model: str, path: Path) -> None:
    """Speed against quality of `caches.py`."""
    asked = record["protocol"]
    draw_caches(record["rows"], f"{model}, {asked['steps']} steps, {len(asked['prompts'])} prompts", path)


def predictability(record: dict[str, Any], model: str, path: Path) -> None:
    """The maps of `predictability.py`."""
    found = {site: [Predictability(**point) for point in points] for site, points in record["sites"].items()}
    draw_maps(found, model, record["gap"], path)


def rounding(record: dict[str, Any], model: str, path: Path) -> None:
    """The noise floor of `rounding.py`."""
    features: dict[str, dict[float, ErrorSplit]] = defaultdict(dict)
    for row in record["rows"]:
        if row["table"] == "noise floor":
            figures = {name: row[name] for name in ("total", "random", "bias", "uncertainty")}
            features[row["feature"]][row["sigma"]] = ErrorSplit(**figures)
    splits = {name: list(each.values()) for name, each in features.items()}
    plot_floor(list(features["output"]), splits, path)


KINDS = {"caches": ("caches", caches), "predictability": ("predictability", predictability),
         "rounding": ("noise-floor", rounding)}  # fmt: skip


def main(out: Annotated[Path, typer.Option(help="folder of the figures")] = RECORDS) -> None:
    """Draw every figure whose record is there."""
    out.mkdir(parents=True, exist_ok=True)
    for kind, (name, drawn) in KINDS.items():
        for file in sorted(RECORDS.glob(f"{kind}-*.json")):
            model = file.stem.removeprefix(f"{kind}-")
            drawn(json.loads(file.read_text()), model, out / f"{name}-{model}.png")


if __name__ == "__main__":
    typer.run(main)
