"""What rounding with error feedback is worth against uniform NF4 in the same bytes, and the noise floor of int8.

python benchmarks/rounding.py [--quick] [--model shapes-flux] [--out docs/benchmarks]
Writes rounding-MODEL.json and noise-floor-MODEL.png. A few minutes on one core.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, show

from stack import Stack
from stack.calibration.quant.recording import Recorded, record_calls
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.load import reference
from training.evaluate import held_out_scenes

CALIBRATION_SEED = 77  # draws other scenes than those that pictures are judged on


def pictures(run: Any, prompts: list[str], steps: int) -> torch.Tensor:
    """(B, 3, H, W), one batch, prompt i from seed i."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    found: torch.Tensor = run(prompts, num_inference_steps=steps, generator=generators, output_type="pt").images
    return found.float()


def judged(name: str, stack: Stack, base: torch.Tensor, prompts: list[str], calls: list[Recorded]) -> dict[str, Any]:
    """A stack's weight bytes by storage, its pictures against the base's, its output's error at each noise level."""
    stack.undo()
    wanted = [call.run(stack.denoiser).float() for call in calls]
    stack.apply()
    got = [call.run(stack.denoiser).float() for call in calls]
    errors = {
        f"error at sigma {call.context.sigma:.2f}": float((g - w).norm() / w.norm())
        for call, g, w in zip(calls, got, wanted, strict=True)
    }
    row = {
        "name": name,
        "weight bytes": stack.report().passes["quantize"]["weight_bytes"],
        "PSNR (dB)": psnr(pictures(stack, prompts, stack.facts.steps), base),
        **errors,
    }
    stack.undo()
    return row


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    quick: bool = False,
    out: Path = Path("docs/benchmarks"),
    record: Annotated[Path | None, typer.Option("--json", help="the record, if not in OUT")] = None,
) -> None:
    """Round by some prompts, judge on others."""
    known, steps = reference(model), 20 if quick else 50
    rng = random.Random(CALIBRATION_SEED)
    calibration = [known.prompt(known.sample(rng)) for _ in range(8 if quick else 12)]
    prompts = [known.prompt(scene) for scene in held_out_scenes(2 if quick else 4, known.sample)]
    pipe, sampled = load(model, torch.bfloat16), 3 if quick else 6
    base = pictures(pipe, prompts, steps)
    uniform = Stack(pipe, steps=steps).quantize("nf4", backend="native")
    fed_back = Stack(pipe, steps=steps).quantize("nf4", feedback=True)
    fed_back.fit_rounding(calibration, seed=1000, steps=sampled)
    calls = record_calls(uniform, prompts, seed=0, steps=sampled)
    stacks = {"nf4": uniform, "nf4 with feedback": fed_back}
    rows = [judged(name, stack, base, prompts, calls) for name, stack in stacks.items()]
    # One column per row: there are too many figures for one line.
    turned = [{"figure": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    show(f"{model}, bf16, {steps} steps, {len(prompts)} prompts", turned)
    floor = Stack(pipe, steps=steps).quantize("int8").noise_floor(prompts[:2], steps=sampled)
    out.mkdir(parents=True, exist_ok=True)
    floor.save_plot(out / f"noise-floor-{model}.png")
    splits = [
        {"feature": name, "sigma": sigma, **asdict(split)}
        for name, each in floor.features.items()
        for sigma, split in zip(floor.sigmas, each, strict=True)
    ]
    show("noise floor of int8, the denoiser's output", [s for s in splits if s["feature"] == "output"])
    nf4, better = rows
    targets = [
        Target("PSNR of feedback over uniform nf4 (dB)", better["PSNR (dB)"] - nf4["PSNR (dB)"], 3.0),
        Target(
            "weight bytes with feedback over uniform nf4's", better["weight bytes"] / nf4["weight bytes"], 1.0, "<="
        ),
    ]
    everything = [*({"table": "pictures", **r} for r in rows), *({"table": "noise floor", **s} for s in splits)]
    finish(everything, targets, pipe.device.type, record or out / f"rounding-{model}.json")


if __name__ == "__main__":
    typer.run(main)
