"""Every cache preset, other people's caches and both controls on one reference model.

python benchmarks/caches.py [--quick] [--model shapes-flux] [--json docs/benchmarks/caches.json]

Everything runs eager and unquantized, so that rows differ in their cache alone. A row's controls are the same model
with as many steps as fit in that row's own time, Euler and second order: PSNR read off their curves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from cache_rows import STEPS, Row, rows_of
from calibrate import HELD_OUT, PROMPTS
from common import Target, finish, show
from rich.progress import Progress

from stack import Stack
from stack.measure.compare import captions
from stack.measure.engine import AS_TENSOR
from stack.measure.metrics import psnr, ssim
from stack.models.load import load_pipeline
from stack.passes.cache import Cache
from stack.reference.load import REFERENCES, load_reader

SEED = 500


def calibrate(pipe: Any, counts: Sequence[int], seconds: float) -> dict[int, dict[str, Any]]:
    """Calibrated options of SVD-Cache by number of full steps, on prompts that are not measured."""
    found = {}
    for full in counts:
        stack = Stack(pipe, steps=STEPS).cache("svd")
        result = stack.calibrate(PROMPTS, HELD_OUT, full_steps=full, budget=seconds)
        stack.undo()
        print(result)
        found[full] = {**vars(result.candidate), "steps": STEPS}
    return found


def fit_gates(pipe: Any) -> dict[str, dict[str, Any]]:
    """The measured numbers that TeaCache's and MagCache's gates need, on prompts that are not measured."""
    options = {}
    for method, name in (("teacache", "coefficients"), ("magcache", "ratios")):
        (cache,) = Stack(pipe, steps=STEPS).cache(method).fit_gate(PROMPTS).passes
        assert isinstance(cache, Cache)
        options[method] = {name: getattr(cache.policy, name)}
    options["magcache"]["longest"] = 6
    return options


def measure(pipe: Any, rows: Sequence[Row], prompts: Sequence[str]) -> None:
    """Every row, prompt after prompt."""
    with Progress() as bar:
        task = bar.add_task("caches", total=len(rows) * len(prompts))
        for i, prompt in enumerate(prompts):
            for row in rows:
                bar.update(task, description=f"{row.name}, picture {i + 1} of {len(prompts)}")
                with row.using(pipe) as run:
                    generator = torch.Generator().manual_seed(SEED + i)
                    started = time.perf_counter()
                    images = run(prompt, num_inference_steps=STEPS, generator=generator, **AS_TENSOR)[0]
                    row.seconds.append(time.perf_counter() - started)
                row.pictures.append(images[0].float())
                bar.advance(task)


def figures(rows: Sequence[Row], prompts: Sequence[str], model: str) -> list[dict[str, Any]]:
    """One line per row, those of the controls included."""
    reference, reader, known = torch.stack(rows[0].pictures), load_reader(model), REFERENCES[model]
    scenes = [known.parse(text) for text in prompts]
    lines: list[dict[str, Any]] = []
    for row in rows:
        pictures = torch.stack(row.pictures)
        full = row.figures.get("full", row.full)
        lines.append(
            {
                "row": row.name,
                "seconds": median(row.seconds),
                "speedup": median(rows[0].seconds) / median(row.seconds),
                "full": full or None,
                "psnr": psnr(pictures, reference),
                "ssim": ssim(pictures, reference),
                "accuracy": reader.accuracy(pictures * 2 - 1, scenes, known.asked),
                "MB": row.figures.get("MB"),
                "over controls": None,
                "group": row.group,
            }
        )
    curves = [[line for line in lines if line["group"] == group] for group in ("euler", "unipc")]
    for line in lines:
        if line["group"] in ("ours", "preset", "peer"):
            # Steps of the base that fit in the row's time; a control is charged what a step costs on average.
            steps = STEPS / line["speedup"]
            at = [
                float(np.interp(steps, [c["full"] for c in curve], [c["psnr"] for c in curve]))
                for curve in curves
                if curve
            ]
            line["over controls"] = line["psnr"] - max(at)
    return lines


def targets_of(lines: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[Target]:
    """What calibrated SVD-Cache has to show, at each number of full steps."""
    targets = []
    for full in counts:
        ours = next(line for line in lines if line["row"] == f"svd calibrated, {full}")
        rivals = [
            line for line in lines
            if (line["group"] == "peer" or line["row"].startswith("taylorseer"))
            and (line["full"] == full or (not line["full"] and line["speedup"] >= 0.95 * ours["speedup"]))
        ]  # fmt: skip
        best = max(rivals, key=lambda line: line["psnr"])
        name = f"svd calibrated, {full} full steps: dB over the best rival ({best['row']})"
        targets.append(Target(name, ours["psnr"] - best["psnr"], 4.0))
        targets.append(Target(f"svd calibrated, {full}: dB over the better control", ours["over controls"], 0.0))
        targets.append(
            Target(f"svd calibrated, {full}: speedup over 50 / {full}", ours["speedup"] * full / STEPS, 0.95)
        )
    return targets


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Speedup against PSNR, one colour per group; controls as lines."""
    figure, axes = plt.subplots(figsize=(9, 6))
    for group, style in {"euler": "k--", "unipc": "k-"}.items():
        points = sorted((line["speedup"], line["psnr"]) for line in lines if line["group"] == group)
        if points:
            axes.plot(*zip(*points, strict=True), style, label=f"fewer steps, {group}", linewidth=1)
    for group, colour in {"preset": "tab:blue", "peer": "tab:orange", "ours": "tab:red"}.items():
        shown = [line for line in lines if line["group"] == group]
        axes.scatter([line["speedup"] for line in shown], [line["psnr"] for line in shown], c=colour, label=group, s=24)
        for line in shown:
            axes.annotate(
                line["row"], (line["speedup"], line["psnr"]), fontsize=5, xytext=(3, 3), textcoords="offset points"
            )
    axes.set(xlabel="speedup", ylabel="PSNR, dB", xlim=(1, 8), ylim=(18, 60))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    quick: bool = False,
    prompts: Annotated[int, typer.Option(min=2)] = 4,
    json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Calibrate, measure, print the table and the targets."""
    pipe, counts = load_pipeline(model), (9,) if quick else (12, 10, 9)
    texts = captions(2 if quick else prompts, seed=5, model=model)
    calibrated = calibrate(pipe, counts, seconds=60)
    rows = rows_of(
        pipe,
        calibrated,
        fit_gates(pipe),
        load=lambda: load_pipeline(model),
        thresholds=(0.1, 0.2) if quick else (0.06, 0.1, 0.15, 0.22),
    )
    measure(pipe, rows, texts)
    lines = figures(rows, texts, model)
    show(f"{model}, {len(texts)} prompts, {STEPS} steps", lines)
    patterns = {row.name: row.figures["pattern"] for row in rows if "pattern" in row.figures}
    for name, pattern in patterns.items():
        print(f"{pattern}  {name}")
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        draw(lines, json.with_suffix(".png"))
    finish(lines, targets_of(lines, counts), pipe.device.type, json)


if __name__ == "__main__":
    typer.run(main)
