"""What int8 gives on a whole denoiser, eager and compiled, beside what Amdahl's law allows it.

python benchmarks/quantize.py [--quick] [--json docs/benchmarks/quantize.json]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, interleaved, show

from stack import Stack
from stack.bounds import best_speedup
from stack.measure.base import stand_in
from stack.models.load import load_pipeline
from stack.models.wiring import wiring_of
from stack.quant.amdahl import gemm_rate, linear_shapes, linear_share
from stack.quant.schemes import SCHEMES
from stack.quant.select import Rules, choose_linears

PROMPTS = ("a red ring left of a blue star", "a green circle in the top on a white background")


def calls_of(pipe: Any) -> list[dict[str, Any]]:
    """The arguments of one denoiser call per prompt, from the pipeline's own loop."""
    seen: list[dict[str, Any]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for i, prompt in enumerate(PROMPTS):
            pipe(prompt, num_inference_steps=1, generator=torch.Generator().manual_seed(i), output_type="pt")
    finally:
        handle.remove()
    return seen


def limits(stack: Stack, call: dict[str, Any]) -> tuple[float, float]:
    """Share of an eager call's time in the linears that int8 converts, and how much faster their bare products are."""
    denoiser = stack.undo().denoiser
    choices = choose_linears(denoiser, wiring_of(denoiser), Rules(SCHEMES["int8"], text_tokens=stack.facts.text_tokens))
    paths = [choice.path for choice in choices if choice.kept is None]

    def run() -> object:
        return denoiser(**call)

    return linear_share(denoiser, run, paths), gemm_rate(linear_shapes(denoiser, run, paths), denoiser.dtype)


@torch.no_grad()
def main(
    model: str = "shapes-flux", quick: bool = False, json: Annotated[Path | None, typer.Option("--json")] = None
) -> None:
    """Time four variants of one denoiser in turn, and compare the gain with its limit."""
    pipe = load_pipeline(model)
    calls = calls_of(pipe)
    stacks = {
        "eager": Stack(stand_in(pipe.transformer)),
        "compiled": Stack(stand_in(pipe.transformer)).compile(),
        "int8": Stack(stand_in(pipe.transformer)).quantize("int8"),
        "int8 compiled": Stack(stand_in(pipe.transformer)).quantize("int8").compile(),
    }

    def run(stack: Stack) -> Callable[[], object]:
        return lambda: [stack.apply().denoiser(**call) for call in calls]

    seconds = interleaved({name: run(stack) for name, stack in stacks.items()}, rounds=8 if quick else 40)
    share, rate = limits(stacks["int8"], calls[0])
    rows, targets = [], []
    for eager, quantized in (("eager", "int8"), ("compiled", "int8 compiled")):
        # The linears take as long in both; what is compiled around them makes their share larger.
        own = min(1.0, share * seconds["eager"] / seconds[eager])
        allowed, gain = best_speedup([own], [rate]), seconds[eager] / seconds[quantized]
        ms, int8_ms = (1e3 * seconds[name] / len(calls) for name in (eager, quantized))
        row = {"base": eager, "ms": ms, "int8 ms": int8_ms, "speedup": gain, "linear share": own, "GEMM rate": rate}
        rows.append({**row, "allowed": allowed, "reached": gain / allowed})
    faster = min(("eager", "compiled"), key=lambda name: seconds[name])
    best = min(("int8", "int8 compiled"), key=lambda name: seconds[name])
    show(f"{model}, {str(pipe.transformer.dtype).removeprefix('torch.')}, one denoiser call", rows)
    targets.append(Target("int8 over the faster of eager and compiled", seconds[faster] / seconds[best], 1.0))
    targets.append(Target("share of Amdahl's limit reached, like with like", rows[-1]["reached"], 0.85))
    finish(rows, targets, pipe.device.type, json)


if __name__ == "__main__":
    typer.run(main)
