"""Schemes and backends: bare linears, whole denoisers, finished pictures.

python benchmarks/quantize.py [--quick] [--model shapes-flux ...] [--device cuda] [--json docs/benchmarks/quantize.json]

On a GPU the models are `flux-dev` (its shape, random weights) and the reference models. Not measured on one yet.
"""

from __future__ import annotations

import json as to_json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Target, show, tell_targets
from quantbench.denoisers import CPU, CUDA, RANDOM, case_of, measure_denoiser
from quantbench.libraries import CONTESTANTS
from quantbench.linears import measure_linears
from quantbench.page import page
from quantbench.pictures import measure_pictures
from quantbench.targets import denoiser_targets, linear_targets

from stack.comparison.record import machine
from stack.core.versions import versions

SIZES = ((512, 1024), (512, 4096), (768, 1024), (1024, 1024), (1024, 4096), (1536, 2048), (3072, 1024))
QUICK = ((512, 1024), (1024, 1024))
# Where every scheme is measured; elsewhere only what computes in 8 bits.
ALL_SCHEMES_AT = (1024, 1024)
INT8 = tuple(name for name in CONTESTANTS if name.startswith("bf16") or name.startswith("int8 "))


def linears(quick: bool, device: str) -> list[dict[str, Any]]:
    """Bare linears at every size."""
    rows = []
    for width, tokens in QUICK if quick else SIZES:
        names = tuple(CONTESTANTS) if (width, tokens) == ALL_SCHEMES_AT and not quick else INT8
        rows += measure_linears(width, tokens, 5 if quick else 15, names, device)
        torch.compiler.reset()
    return rows


def denoisers(models: list[str], quick: bool, device: str, pictures: int) -> list[dict[str, Any]]:
    """Whole denoisers, and for those with weights their pictures."""
    rows = []
    for name in models:
        case = case_of(name, 10 if quick else 50, device)
        variants = CPU if device == "cpu" else CUDA
        some = measure_denoiser(case, variants, 5 if quick else 30, quick, device)
        if name not in RANDOM:
            ran = tuple(v for v in variants if any(row["variant"] == v.name and row["ms"] for row in some))
            made = measure_pictures(name, case.pipe, ran, 2 if quick else pictures, 10 if quick else 50)
            base = made["eager"]["accuracy"]
            for row in some:
                own = made.get(row["variant"], {})
                row |= {"PSNR": own.get("psnr"), "accuracy": own.get("accuracy"), "base accuracy": base}
        rows += some
        torch.compiler.reset()
    return rows


def main(
    model: Annotated[list[str] | None, typer.Option()] = None,
    quick: bool = False,
    device: str = "cpu",
    pictures: Annotated[int, typer.Option(min=1, help="of each model and scheme")] = 16,
    json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, print, and write the record and its page."""
    models = model or (["shapes-flux"] if quick else ["shapes-flux", "shapes-dit", "shapes-video", "dit-12x768"])
    bare = linears(quick, device) if device == "cpu" else []
    whole = denoisers(models, quick, device, pictures)
    targets: list[Target] = linear_targets(bare) + denoiser_targets(whole)
    for title, rows in (("linears of one block", bare), ("one denoiser call", whole)):
        if rows:
            show(title, [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])
    tell_targets(targets)
    if json:
        met = [asdict(t) | {"met": t.met} for t in targets]
        record = {
            "machine": machine(device), "versions": versions(), "linears": bare, "denoisers": whole, "targets": met
        }  # fmt: skip
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(to_json.dumps(record, indent=2) + "\n")
        json.with_suffix(".md").write_text(page(record))
        print(f"written: {json}, {json.with_suffix('.md')}")


if __name__ == "__main__":
    typer.run(main)
