"""What the layer itself costs: a step with a stack beside the same step of the model alone.

python benchmarks/overhead.py                                all three reference models
python benchmarks/overhead.py --model shapes-dit --rounds 6

Times are CPU time of one thread, so that other work on the machine hardly shows; every figure is the least of the
rounds, which take turns. A step is made again and again with the arguments of a real request. Told apart are

  own         the model, with blocks and what only they read answering at once: its head and its Python
  forecast    the sum that stands in for the last hidden state; update: what a full step does for it
  layer       the rest of a cached step, and of a full one, over the model alone: hook, conditions, decision, guards
  loop        what a step takes outside of the denoiser: sampler and guidance
  ratio       speedup of a whole request, `svd` at 9 of 50 full steps, over 50 / 9
  no layer    the same if all of ours were free: what no cache of the last hidden state can exceed
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from common import show
from torch import nn

from stack import Stack
from stack.loading import load
from stack.models.derive.wiring import wiring_of
from stack.reference.captions import captions
from stack.runtime.step_clock import MAIN

MODELS = ["shapes-flux", "shapes-dit", "shapes-video"]
STEPS, FULL, REPEATS = 50, 9, 100


def least(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The lower quartile of CPU milliseconds."""
    taken = []
    for _ in range(repeats):
        started = time.thread_time()
        run()
        taken.append(time.thread_time() - started)
    return 1e3 * sorted(taken)[len(taken) // 4]


class Bench:
    """One reference model, and the last call of its denoiser in a real request."""

    def __init__(self, model: str):
        self.model, self.pipe = model, load(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser, self.prompt = self.pipe.transformer, captions(1, 0, model)[0]
        calls: list[tuple[Any, Any]] = []
        hook = self.denoiser.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
        self.draw(self.pipe)
        hook.remove()
        self.args, self.kwargs = calls[-1]

    def draw(self, run: Any) -> None:
        """One request."""
        seed = torch.Generator().manual_seed(1)
        run(self.prompt, num_inference_steps=STEPS, generator=seed, output_type="latent", return_dict=False)

    def request(self, run: Any) -> tuple[float, float]:
        """CPU milliseconds of a request, and of those that are spent outside of the denoiser."""
        inside, started = [0.0], [0.0]
        hooks = [
            self.denoiser.register_forward_pre_hook(lambda *_: started.__setitem__(0, time.thread_time())),
            self.denoiser.register_forward_hook(lambda *_: inside.append(time.thread_time() - started[0])),
        ]
        whole = least(lambda: self.draw(run), 1)
        for hook in hooks:
            hook.remove()
        return whole, whole - 1e3 * sum(inside)

    def call(self) -> Any:
        """One step of the model."""
        return self.denoiser(*self.args, **self.kwargs)

    @contextmanager
    def answering(self, cached: bool) -> Iterator[None]:
        """Inside of it all blocks answer at once, and on a cached step what only they read."""
        wiring = wiring_of(self.denoiser)
        modules = [block for _, block in wiring.blocks(self.denoiser)]
        modules += wiring.idle(self.denoiser) if cached else []
        answers: dict[nn.Module, Any] = {}
        hooks = [m.register_forward_hook(lambda m, _, out: answers.__setitem__(m, out)) for m in modules]
        self.call()
        for hook in hooks:
            hook.remove()
        for module, answer in answers.items():
            module.forward = functools.wraps(module.forward)(lambda *_, _answer=answer, **__: _answer)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def step(self, **options: Any) -> dict[str, float]:
        """The last step under `svd`, and of it the forecast and the predictor's update, each in milliseconds."""
        with Stack(self.pipe, steps=STEPS).cache("svd", **options) as stack:
            self.draw(stack)
            clock, controller = stack._target.clock, stack._layers[-1].applied.details["controller"]
            predictor = next(iter(controller.slots[0].predictors.values()))
            context, x, nodes = clock.context, controller.x, predictor._raw.nodes
            stack._target.prepare = lambda steps: []  # a step alone is no call of one step

            def again() -> None:
                clock._at[context.branch], clock.branch = context.at - 1, context.branch
                clock._driven = clock._spent = None  # nor is its schedule that of another run
                counted = vars(self.pipe.scheduler)
                if "_step_index" in counted:  # it has run to its end
                    counted["_step_index"] = context.at
                # Else a full step at the very place of the last one takes no differences.
                predictor._raw.nodes[0] = max(nodes[0], x + 0.1)
                self.call()

            again()
            whole, feature, clock.branch = least(again), predictor.last, MAIN
            places = iter(range(1, REPEATS + 1))
            return {
                "step": whole,
                "forecast": least(lambda: predictor.predict(x + 0.1)),
                "update": least(lambda: predictor.update(feature, x - 0.01 * next(places))),
            }


def row(bench: Bench, rounds: int) -> dict[str, Any]:
    """The figures of one model."""
    found: dict[str, list[float]] = {}
    stack = Stack(bench.pipe, steps=STEPS).cache("svd")
    for _ in range(rounds):
        base, loop = bench.request(bench.pipe)
        with stack:
            fast, _ = bench.request(stack)
        now = {"full": least(bench.call, 10), "base": base, "loop": loop, "fast": fast}
        with bench.answering(cached=True):
            now["own"] = least(bench.call)
        with bench.answering(cached=False):
            now["own full"], every = least(bench.call), bench.step(interval=1)
        cached = bench.step()
        now |= {"cached": cached["step"], "forecast": cached["forecast"]}
        now |= {"full stack": every["step"], "update": every["update"]}
        for name, value in now.items():
            found.setdefault(name, []).append(value)
    ms = {name: min(values) for name, values in found.items()}
    layer = ms["cached"] - ms["own"] - ms["forecast"]
    on_full = ms["full stack"] - ms["own full"] - ms["update"]
    model_alone = ms["loop"] + FULL * ms["full"] + (STEPS - FULL) * ms["own"]
    return {
        "model": bench.model,
        "full ms": ms["full"],
        "own ms": ms["own"],
        "forecast ms": ms["forecast"],
        "update ms": ms["update"],
        "layer, cached ms": layer,
        "layer, full ms": on_full,
        "of a full step": f"{layer / ms['full']:.2%} / {on_full / ms['full']:.2%}",
        "loop ms": ms["loop"] / STEPS,
        "ratio": ms["base"] / ms["fast"] / (STEPS / FULL),
        "no layer": (ms["loop"] + STEPS * ms["full"]) / model_alone / (STEPS / FULL),
    }


@torch.no_grad()
def main(
    model: Annotated[list[str] | None, typer.Option(help="may be given several times")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure, and print one row per model."""
    torch.set_num_threads(1)
    show("what the layer costs, svd at 9 of 50", [row(Bench(name), rounds) for name in model or MODELS])


if __name__ == "__main__":
    typer.run(main)
