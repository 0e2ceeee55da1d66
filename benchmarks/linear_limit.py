"""How near few full steps can come to an adapter's pictures where all between them is linear, its weights fitted.

python benchmarks/linear_limit.py [--adapter shapes-flux-8] [--count 3] [--out docs/benchmarks/linear-limit.json]

A forecast with a weight per step, a corrector, or a solver's step makes the next latent a weighted sum of the first
noise and of the estimates x0 of the full steps so far. Here these weights are fitted by least squares, one per part and
full step, each fit on latents that the fits before it led to, for every choice of full steps. So no cache or solver of
that form, however it learns its weights, is expected to be better by much. Prompts and seeds that are fitted on are not
those that are judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from cachebench.bench import BATCH, FIT_SEED, FIT_TEXTS, JUDGED_SEED, JUDGED_TEXTS, pictures
from common import Target, finish, show

from stack import Stack
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.captions import captions

ASKED = 42.0  # dB, at 3 of 8 steps


@dataclass
class Recorded:
    """An uncached run: of every call its arguments, latent and estimate, and the last latent."""

    given: list[dict[str, Any]]
    latents: list[torch.Tensor]
    estimates: list[torch.Tensor]


class Denoiser:
    """The denoiser of a stack of rectified flow, recorded, and called at latents of ours."""

    def __init__(self, stack: Stack, steps: int) -> None:
        self.stack, self.steps, self.model = stack, steps, stack.pipe.transformer

    def recorded(self, texts: list[str], seed: int) -> Recorded:
        """A batch of pictures, made as the stack makes them."""
        run = Recorded([], [], [])

        def note(_: Any, __: Any, given: dict[str, Any], out: Any) -> None:
            run.given.append(given)
            run.latents.append(given["hidden_states"].float())
            run.estimates.append(self._estimate(given, out, len(run.given) - 1))

        handle = self.model.register_forward_hook(note, with_kwargs=True)
        try:
            pictures(self.stack, texts, self.steps, seed)
        finally:
            handle.remove()
        run.latents.append(run.estimates[-1])  # the last level is 0: what is left is the estimate
        return run

    def at(self, run: Recorded, step: int, latent: torch.Tensor) -> torch.Tensor:
        """The estimate of a step at another latent."""
        given = run.given[step] | {"hidden_states": latent.to(run.given[step]["hidden_states"].dtype)}
        return self._estimate(given, self.model(**given), step)

    def _estimate(self, given: dict[str, Any], out: Any, step: int) -> torch.Tensor:
        velocity = (out[0] if isinstance(out, tuple) else out.sample).float()
        return given["hidden_states"].float() - self.stack.pipe.scheduler.sigmas[step].item() * velocity


def fitted(parts: Sequence[Sequence[torch.Tensor]], truth: Sequence[torch.Tensor]) -> list[float]:
    """The weight of each part, by least squares over all runs together."""
    columns = torch.stack([torch.cat([t.flatten() for t in part]) for part in parts], 1).double()
    wanted = torch.cat([t.flatten() for t in truth]).double()
    return torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0].tolist()


def sampled(denoiser: Denoiser, runs: list[Recorded], fit: int, full: tuple[int, ...]) -> list[torch.Tensor]:
    """Last latents with full steps at these places, weights fitted on the first `fit` runs."""
    parts = [[run.latents[0] for run in runs], [run.estimates[0] for run in runs]]
    for step in (*full[1:], denoiser.steps):
        weights = fitted([part[:fit] for part in parts], [run.latents[step] for run in runs[:fit]])
        latents = [sum(w * part[i] for w, part in zip(weights, parts, strict=True)) for i in range(len(runs))]
        if step < denoiser.steps:
            parts.append([denoiser.at(run, step, latent) for run, latent in zip(runs, latents, strict=True)])
    return latents


def measured(denoiser: Denoiser, model: str, count: int, prompts: int) -> Iterator[dict[str, Any]]:
    """One line per choice of full steps: median dB of latents, of what was fitted on and of what was not."""

    def some(drawn: int, seed: int) -> list[Recorded]:
        texts = captions(prompts + 1, seed=drawn, model=model)[1:]
        return [denoiser.recorded(texts[k : k + BATCH], seed + k) for k in range(0, prompts, BATCH)]

    runs = [*some(FIT_TEXTS, FIT_SEED), *some(JUDGED_TEXTS, JUDGED_SEED)]
    fit = len(runs) // 2
    for rest in itertools.combinations(range(1, denoiser.steps), count - 1):
        made = sampled(denoiser, runs, fit, (0, *rest))
        near = [[psnr(_shown(a), _shown(b)) for a, b in zip(m, run.latents[-1], strict=True)]
                for m, run in zip(made, runs, strict=True)]  # fmt: skip
        seen, judged = (median(itertools.chain(*part)) for part in (near[:fit], near[fit:]))
        yield {"full": " ".join(map(str, (0, *rest))), "fitted on": seen, "others": judged}


def _shown(latent: torch.Tensor) -> torch.Tensor:
    """Latents of these models are pixels in [-1, 1]."""
    return (latent.clamp(-1, 1) + 1) / 2


@torch.no_grad()
def main(
    adapter: str = "shapes-flux-8",
    count: Annotated[int, typer.Option(min=2, help="full steps")] = 3,
    prompts: Annotated[int, typer.Option(min=BATCH, help="to fit on, and as many others")] = 16,
    out: Path = Path("docs/benchmarks/linear-limit.json"),
) -> None:
    """Measure, print, and keep the record."""
    model, steps = adapter.rpartition("-")[0], int(adapter.rpartition("-")[2])
    with Stack(load(model)).distill(adapter) as stack:
        lines = list(measured(Denoiser(stack, steps), model, count, prompts))
    lines.sort(key=lambda line: -line["others"])
    show(f"{adapter}, {count} of {steps} steps, {prompts} prompts", lines)
    finish(lines, [Target(f"{adapter}, the best of {count} full steps: dB", lines[0]["others"], ASKED)], "cpu", out)


if __name__ == "__main__":
    typer.run(main)
