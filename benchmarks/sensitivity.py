"""A 4-bit mix from the sensitivity analysis against uniform NF4 in the same bytes, and the noise floor of int8.

python benchmarks/sensitivity.py [--quick] [--model shapes-flux] [--out docs/benchmarks]
Writes sensitivity-MODEL.json, sensitivity-MODEL.png and noise-floor-MODEL.png. About a quarter of an hour on one core.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, show

from stack import Stack
from stack.calibrate.quant.measuring import CANDIDATES, measure, workshop
from stack.calibrate.quant.planning import resolved
from stack.calibrate.quant.recording import Recorded, carrying, record_calls
from stack.calibrate.quant.sensitivity import Sensitivity
from stack.loading import load_pipeline
from stack.measure.metrics import psnr
from stack.quant.quantize import Quantize
from stack.reference.load import reference
from training.evaluate import held_out_scenes

CALIBRATION_SEED = 77  # draws other scenes than those that pictures are judged on
FEEDBACK = "nf4+feedback"
UNIFORM, CONTROL, MIX = "nf4 everywhere", f"{FEEDBACK} everywhere", "calibrated mix"


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
        f"error at sigma {call.tick.sigma:.2f}": float((g - w).norm() / w.norm())
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


def calibrated(
    stack: Stack, calls: list[Recorded], schemes: tuple[str, ...]
) -> tuple[Sensitivity, dict[str, Quantize]]:
    """What each linear costs, and the quantize passes to compare: all three in as many bytes."""
    asked = Quantize("nf4", max_bytes="nf4")
    with carrying(stack, []) as below:
        shop = workshop(below, Quantize("nf4"), schemes, calls)
        found = measure(shop, progress=True)
        alone = [replace(layer, local={FEEDBACK: layer.local[FEEDBACK]}) for layer in found.layers]
        only = resolved(shop, replace(found, layers=tuple(alone)), asked)
        return found, {UNIFORM: Quantize("nf4"), CONTROL: only, MIX: resolved(shop, found, asked)}


def additivity(found: Sensitivity) -> list[dict[str, Any]]:
    """Per scheme, every linear in it: what squares add up to, and what was measured."""
    return [
        {"scheme": name, "weight bytes": found.bytes_of(name), "predicted": p, "measured": m, "ratio": m / p}
        for name, (p, m) in found.whole.items()
    ]


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    quick: bool = False,
    out: Path = Path("docs/benchmarks"),
    record: Annotated[Path | None, typer.Option("--json", help="the record, if not in OUT")] = None,
) -> None:
    """Calibrate a mix on some prompts, judge it on others."""
    known, steps = reference(model), 20 if quick else 50
    rng = random.Random(CALIBRATION_SEED)
    calibration = [known.prompt(known.sample(rng)) for _ in range(8 if quick else 12)]
    prompts = [known.prompt(scene) for scene in held_out_scenes(2 if quick else 4, known.sample)]
    pipe = load_pipeline(model, torch.bfloat16)
    schemes = ("int8-weight", "nf4", FEEDBACK, "nf4/192+feedback") if quick else CANDIDATES
    base = pictures(pipe, prompts, steps)
    plain, sampled = Stack(pipe, steps=steps).quantize("nf4"), 3 if quick else 6
    calls = record_calls(plain, prompts, seed=0, steps=sampled)
    found, passes = calibrated(plain, record_calls(plain, calibration, seed=1000, steps=sampled), schemes)
    rows = [judged(name, Stack(pipe, steps=steps).add(each), base, prompts, calls) for name, each in passes.items()]
    # One column per row: there are too many figures for one line.
    turned = [{"figure": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    show(f"{model}, bf16, {steps} steps, {len(prompts)} prompts", turned)
    sums = additivity(found)
    show("squared errors add: every linear in one scheme", sums)
    out.mkdir(parents=True, exist_ok=True)
    found.save_plot(out / f"sensitivity-{model}.png")
    rounded = Stack(pipe, steps=steps).quantize("int8")
    floor = rounded.noise_floor(prompts[:2], steps=3 if quick else 6)
    floor.save_plot(out / f"noise-floor-{model}.png")
    splits = [
        {"feature": name, "sigma": sigma, **asdict(split)}
        for name, each in floor.features.items()
        for sigma, split in zip(floor.sigmas, each, strict=True)
    ]
    show("noise floor of int8, the denoiser's output", [s for s in splits if s["feature"] == "output"])
    (out / f"sensitivity-{model}-layers.json").write_text(json.dumps(json.loads(found.to_json())) + "\n")
    nf4, _, mix = rows
    targets = [
        Target("PSNR of the mix over uniform nf4 (dB)", mix["PSNR (dB)"] - nf4["PSNR (dB)"], 3.0),
        Target("weight bytes of the mix over uniform nf4's", mix["weight bytes"] / nf4["weight bytes"], 1.0, "<="),
        Target("worst measured over predicted error of a uniform scheme", max(s["ratio"] for s in sums), 1.5, "<="),
        Target("least measured over predicted error of a uniform scheme", min(s["ratio"] for s in sums), 0.67),
    ]
    everything = [*({"table": "pictures", **r} for r in rows), *({"table": "additivity", **s} for s in sums)]
    everything += [{"table": "noise floor", **s} for s in splits]
    finish(everything, targets, pipe.device.type, record or out / f"sensitivity-{model}.json")


if __name__ == "__main__":
    typer.run(main)
