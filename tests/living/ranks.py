"""One of two processes that share a denoiser's tokens: runs stacks alone and in parallel, and prints what came out.

Started by `test_parallel.py` under `torch.distributed.run`. On a CPU diffusers finds no accelerator to give to a
process, so it is told of one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from diffusers import ContextParallelConfig

from stack import Stack, StackError
from stack.attention.sparse_attn import SparseAttention
from stack.caching.cache import Cache
from stack.compat.subspace import principal_basis
from stack.core.ranks import ALONE, Ranks

from ..families.pipelines.build import Whole, flux, qwen, wan

STEPS = 12
THRESHOLD = 0.75  # of the first-block gate
mean_ratios = Ranks.mean_ratios


def even(build: Callable[[], Whole]) -> Whole:
    """With one token of the prompt more: as many as two processes can share."""
    whole = build()
    for name, value in whole.given.items():
        if isinstance(value, torch.Tensor) and "prompt" in name and "pooled" not in name:
            whole.given[name] = torch.cat([value, value[:, :1]], 1)
    return whole


PIPES: dict[str, Callable[[], Whole]] = {"flux": lambda: even(flux), "qwen": lambda: even(qwen), "wan": wan}
Build = Callable[[Any], Stack]


def cached(method: str, **options: Any) -> Build:
    return lambda pipe: Stack(pipe, steps=STEPS).cache(method, **options)


STACKS: dict[str, Build] = {
    "svd": cached("svd"),
    "svd, refreshed": cached("svd-published", interval=3, basis_life="warm"),
    "fora": cached("fora"),
    "first-block": cached("first-block", threshold=THRESHOLD),
    "easycache": cached("easycache", threshold=0.3),
    "speca": cached("speca-published", accept=[5.0, 1.0, 5.0]),
    "rfc": cached("rfc-published", threshold=3.0),
    "max_error": lambda pipe: Stack(pipe, steps=STEPS, max_error=0.3).cache("first-block"),
    "quantized": lambda pipe: Stack(pipe, steps=STEPS).quantize("int8-weight", min_features=16).cache("svd"),
    "noisy": cached("svd-published", interval=2, noise=[[0.0, 0.3], [1.0, 0.3]]),
}


class Witness:
    """Notes how a process alone would have decided beside how all of them do."""

    def __init__(self) -> None:
        self.otherwise = self.decided = 0

    def mean_ratios(self, ranks: Ranks, pairs: Sequence[Any]) -> list[float | None]:
        together = mean_ratios(ranks, pairs)
        for own, of_all in zip(mean_ratios(ALONE, pairs), together, strict=True) if not ranks.alone else ():
            if own is not None and of_all is not None:
                self.decided += 1
                self.otherwise += (own < THRESHOLD) != (of_all < THRESHOLD)
        return together


def compared(pipe: str, name: str) -> dict[str, Any]:
    """A stack in one process and in two: the largest difference of the latents, and what the steps turned out to be."""
    witness, made, kinds = Witness(), [], []
    for parallel in (False, True):
        whole = PIPES[pipe]()
        if parallel:
            whole.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
            before = whole.call(num_inference_steps=STEPS)
        stack = STACKS[name](whole.pipe)
        with mock.patch.object(Ranks, "mean_ratios", lambda *given: witness.mean_ratios(*given)):
            made.append(whole.call(stack, num_inference_steps=STEPS))
        kinds.append("".join(entry.kind[0] for entry in stack._target.journal.entries))
    undone = torch.equal(whole.call(stack.undo().pipe, num_inference_steps=STEPS), before)
    return {
        "off": float((made[0] - made[1]).abs().max() / made[0].abs().max()),
        "output": made[1].double().sum().item(), "kinds": kinds, "undone": undone,
        "otherwise": witness.otherwise, "decided": witness.decided,
    }  # fmt: skip


def turned() -> float:
    """How far the subspace that two processes find for the halves of a wide feature is from that of the whole."""
    parts = [torch.randn(n, 8, generator=torch.Generator().manual_seed(8)) for n in (200, 1100)]
    feature = (parts[0] @ parts[1].mT + 0.01)[None]
    half = feature.chunk(2, dim=1)[torch.distributed.get_rank()]
    group = Ranks(torch.distributed.group.WORLD, 2)
    found, whole = (b[0] @ b[0].mT for b in (principal_basis(half, 0.9, 0.0, group), principal_basis(feature, 0.9)))
    return float((found - whole).norm() / whole.norm())


def refused() -> list[str]:
    """What a stack over split tokens says of what cannot be."""
    whole = PIPES["flux"]()
    with Stack(whole.pipe, steps=STEPS).cache("svd"):
        said = [
            _error(lambda: whole.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2)))
        ]
    whole.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    stack = Stack(whole.pipe, steps=STEPS)
    said += [
        _error(lambda method=method: stack.beside([Cache(method)]).plan)
        for method in ("toca", "fastcache", "freqca-published")
    ]
    said.append(stack.beside([SparseAttention(even_if_slower=True)]).explain())
    said.append(_error(lambda: stack.beside([Cache("svd")]).calibrate(["a", "b"], ["c"])))
    return said


def _error(act: Callable[[], Any]) -> str:
    try:
        act()
    except StackError as error:
        return str(error)
    return ""


def main(wanted: list[list[Any]]) -> None:
    """Run every case (a pipeline and a stack) and print what came out of it, as JSON."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    with mock.patch("torch.accelerator.device_count", lambda: 1):
        made = [compared(*case) for case in wanted]
        said = refused()
    everybody: list[Any] = [None, None]
    torch.distributed.all_gather_object(everybody, {"made": made, "said": said, "turned": turned()})
    if not torch.distributed.get_rank():
        print(json.dumps(everybody))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
