"""Where a feature is predictable and where it is not: by site, by depth and by time, principal part and residual apart.

python benchmarks/predictability.py --model shapes-flux [--gap 5] [--out docs/benchmarks]
Runs every prompt once without a cache, a few seconds each, and writes predictability-MODEL.json and .png.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from common import show
from predictability_maps import Predictability, over_time

from stack import Stack
from stack.calibration.observe import watching_blocks
from stack.calibration.site_features import SiteFeatures
from stack.loading import load
from stack.measure.figure import new_figure, save_figure
from stack.measure.style import INK
from stack.reference.load import reference
from training.evaluate import held_out_scenes

STEPS = 50
Features = dict[str, list[torch.Tensor]]


def features_of(stack: Stack, prompts: list[str]) -> Features:
    """Per site, the feature of every step at some tokens: each block's residual, their sum, the last hidden state."""
    sites = SiteFeatures(stack.denoiser)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    stack.replace(watching_blocks(sites.see))(
        prompts, num_inference_steps=STEPS, generator=generators, output_type="pt"
    )
    return sites.found


def table(found: dict[str, list[Predictability]]) -> list[dict[str, Any]]:
    """Medians over time, and over its first, middle and last third."""
    rows = []
    for site, points in found.items():
        third = len(points) // 3
        row: dict[str, Any] = {"site": site, "change": median(p.change for p in points)}
        row["residual's share"] = median(p.residual_change for p in points)
        for name in ("principal", "residual"):
            values = [asdict(p)[name] for p in points]
            row[name] = median(values)
            row[f"{name}: early"], row["middle"], row["late"] = (
                median(values[:third]), median(values[third:-third]), median(values[-third:])
            )  # fmt: skip
            row[f"{name}: middle"], row[f"{name}: late"] = row.pop("middle"), row.pop("late")
        rows.append(row)
    return rows


def draw(found: dict[str, list[Predictability]], title: str, gap: int, path: Path) -> None:
    """Two maps of site by step: share of the change that extrapolation explains, in [-1, 1]."""
    figure = new_figure(12, 0.45 * len(found) + 1.8)
    both = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(both, ("principal", "residual"), strict=True):
        rows = [[max(-1.0, asdict(p)[name]) for p in points] for points in found.values()]
        image = axes.imshow(rows, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, extent=(2 * gap, STEPS, len(rows), 0))
        axes.set_title(f"{name} part", color=INK)
        axes.set_xlabel("step")
    both[0].set_yticks([i + 0.5 for i in range(len(found))], list(found))
    figure.colorbar(image, ax=both, label="explained by extrapolation\n(0: no better than reuse)")
    figure.suptitle(f"{title}: what the last {gap} steps tell about the next {gap}", color=INK)
    save_figure(figure, path)


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    gap: Annotated[int, typer.Option(min=1)] = 5,
    energy: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.85,
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    out: Path = Path("docs/benchmarks"),
) -> None:
    """Print a table of medians, and write the maps and every figure."""
    known = reference(model)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    stack = Stack(load(model), steps=STEPS).cache("svd")
    found = {site: over_time(steps, gap, energy) for site, steps in features_of(stack, words).items()}
    show(f"{model}, gap {gap}: share of the change that extrapolation explains", table(found))
    out.mkdir(parents=True, exist_ok=True)
    draw(found, model, gap, out / f"predictability-{model}.png")
    record = {site: [asdict(p) for p in points] for site, points in found.items()}
    (out / f"predictability-{model}.json").write_text(json.dumps({"gap": gap, "energy": energy, "sites": record}))


if __name__ == "__main__":
    typer.run(main)
