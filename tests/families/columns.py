"""What is shown of a denoiser class, column by column: the check, and what a class must not lack for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import pytest
import torch

from stack import Stack
from stack.models.small import Sizes

from . import test_sparse
from .classes import CLASSES, LACKS, LEVELS, REFUSED, Outputs, flat, loop, made, plain, runs, same, wired
from .loop_pipeline import STEPS, loop_pipeline

OTHER_SIZES = Sizes(frames=2, rows=8, columns=4, text=7)
ROUNDING = 2e-6  # of fp32 over a few blocks, relative to the largest number
RECURRENT = {"SanaWMTransformer3DModel": 1e-4}  # sums over all tokens before, one after the other


def bare(name: str) -> Stack:
    return Stack(made(name).denoiser, steps=len(LEVELS))


def which(outputs: list[Outputs], name: str) -> list[bool]:
    """The calls whose outputs are those of the model alone, bit for bit."""
    return [same(out, own) for out, own in zip(outputs, plain(name), strict=False)]


def svd(name: str) -> None:
    """A cached step runs no block, and full steps are exact."""
    outputs, kinds, calls = runs(name, bare(name).cache("svd", interval=2, warmup=1, corrected=False))
    assert kinds == "fcfc" and set(calls) == {2}
    assert which(outputs, name) == [True, False, True, False]


def first_block(name: str) -> None:
    """A gate skips all blocks but the first."""
    outputs, kinds, calls = runs(name, bare(name).cache("first-block", threshold=1e6), 2)
    assert kinds == "fp" and calls == [2] + [1] * (len(calls) - 1)
    assert which(outputs, name) == [True, False]


def teacache(name: str) -> None:
    """A gate on the first block's modulated input skips all blocks."""
    outputs, kinds, calls = runs(name, bare(name).cache("teacache-published", threshold=1e6), 3)
    assert kinds[0] == "f" and set(kinds[1:]) == {"c"} and set(calls) == {kinds.count("f")}
    assert which(outputs, name)[:2] == [True, False]


def fora(name: str) -> None:
    """Every block runs on a cached step, with its attention and feed-forward as they were."""
    outputs, kinds, calls = runs(name, bare(name).cache("fora", interval=2, warmup=1, corrected=False), 2)
    assert kinds == "fc" and set(calls) == {2}
    assert which(outputs, name) == [True, False]


def duca(name: str) -> None:
    """Some tokens are computed."""
    outputs, kinds, _ = runs(name, bare(name).cache("duca", interval=4, warmup=1), 2)
    assert kinds[0] == "f" and set(kinds[1:]) <= {"p", "c"}
    assert which(outputs, name) == [True, False]


def easycache(name: str) -> None:
    """Steps are skipped whole, around the denoiser."""
    outputs, kinds, calls = runs(name, bare(name).cache("easycache", threshold=1e6, warmup=2), 3)
    assert kinds == "ffc" and set(calls) <= {2}
    assert which(outputs, name)[0] and not which(outputs, name)[2]


def predictor_corrector(name: str) -> None:
    """Behind a scheduler, cached steps run nothing, and later full ones put them right."""
    pipe = loop_pipeline(name)
    alone = pipe(name)[0]
    with Stack(pipe, steps=STEPS).cache("predictor-corrector", interval=2, warmup=1) as stack:
        outputs = stack(name)[0]
        assert "".join(step.kind[0] for step in stack.report().steps) == "fcfcff"
    # The third and fifth are full and have a correction added; nothing is owed any more on the last.
    assert [same(*pair) for pair in zip(outputs, alone, strict=True)] == [True, *[False] * 4, True]


def quantize(name: str) -> None:
    """Linears are quantized by their roles."""
    outputs, _, _ = runs(name, bare(name).quantize("int8-weight", min_features=1), 1)
    wiring = wired(name)
    paths = [path for path, _ in made(name).denoiser.named_modules() if wiring.block_of(path)]
    roles = {wiring.role(path[len(wiring.block_of(path)) + 1 :]) for path in paths}
    assert not same(outputs[0], plain(name)[0]) and (not roles or "attention" in roles)


def compiled(name: str) -> None:
    """Every block goes through the compiler, without a graph for each, and gives what it gave."""
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    with mock.patch("torch.compile", partial(_uncompiled, torch.compile)), bare(name).compile() as stack:
        outputs = loop(stack, made(name), 2)
    assert off(outputs, plain(name)[:2]) < 1e-5
    assert which(loop(made(name).denoiser, made(name), 1), name) == [True]
    blocks = wired(name).blocks(made(name).denoiser)
    # Blocks that count or look up places of their own data (HiDream's experts, Mochi's mask) break into several.
    assert not blocks or 1 <= stats["unique_graphs"] <= 7


def _uncompiled(compile: Callable[..., object], forward: Callable[..., object], **how: object) -> object:
    """Traced as for any compiler, and run as it was: a compiler takes seconds for every class."""
    return compile(forward, **{"backend": "eager", **how})


def sparse_attn(name: str) -> None:
    """Key blocks are dropped in the attention over the latent's tokens, between dense steps that are exact."""
    for test in (test_sparse.test_a_map_that_keeps_everything_is_the_classs_own_attention,
                 test_sparse.test_blocks_are_dropped_between_dense_ends):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            test(name, patch)


def batch(name: str) -> None:
    """Two samples in one call give what they give one by one, on cached steps, too."""
    with cached(name) as stack:
        both, one, two = (steps_of(stack, name, sizes) for sizes in (Sizes(batch=2), Sizes(), Sizes(first=1)))
    together = [joined(a, b, pair) for a, b, pair in zip(one, two, both, strict=True)]
    assert off(both, together) < RECURRENT.get(name, ROUNDING)


def joined(one: Outputs, two: Outputs, pair: Outputs) -> Outputs:
    """The outputs of two calls as those of one: some classes return a list of samples."""
    return [*one, *two] if len(pair) > len(one) else [torch.cat(parts) for parts in zip(one, two, strict=True)]


def guidance(name: str) -> None:
    """Two calls a step that the pipeline does not name: each branch goes on as if it were alone."""
    with Stack(loop_pipeline(name), steps=STEPS).cache("svd", interval=3, warmup=1, corrected=False) as stack:
        alone = [*stack(name, branches=[0]), *stack(name, branches=[1])]
        assert stack(name, branches=[0, 1]) == Exactly(alone)
        assert "".join(step.kind[0] for step in stack.report().steps) == "ffccccffcccc"


def two_sizes(name: str) -> None:
    """A size, another one and the first again: as if each had been the first."""
    fresh = []
    for sizes in (Sizes(), OTHER_SIZES):
        with cached(name) as stack:
            fresh.append(steps_of(stack, name, sizes))
    with cached(name) as stack:
        again = [steps_of(stack, name, sizes) for sizes in (Sizes(), OTHER_SIZES, Sizes())]
    assert again == Exactly([*fresh, fresh[0]])


@contextmanager
def cached(name: str) -> Iterator[Stack]:
    with bare(name).cache("svd", interval=2, warmup=1, corrected=False) as stack:
        yield stack


@torch.no_grad()
def steps_of(stack: Stack, name: str, sizes: Sizes) -> list[Outputs]:
    """Outputs at every noise level, of samples of these sizes."""
    calls = (made(name).call(replace(sizes, noise=level)) for level in LEVELS)
    outputs = [flat(stack(**given, return_dict=False)) for given in calls]
    assert [step.kind[0] for step in stack.report().steps[-len(LEVELS) :]] == ["f", "c", "f", "c"]
    return outputs


def off(outputs: list[Outputs], expected: list[Outputs]) -> float:
    """The largest difference, over the largest number of its tensor."""
    pairs = [pair for step in zip(outputs, expected, strict=True) for pair in zip(*step, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


class Exactly:
    """Equal to runs with the same tensors, bit for bit."""

    def __init__(self, runs: list[list[Outputs]]):
        self.runs = runs

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, list) and [len(run) for run in other] == [len(run) for run in self.runs]
        return all(same(*pair) for a, b in zip(other, self.runs, strict=True) for pair in zip(a, b, strict=True))


@dataclass(frozen=True)
class Column:
    """One thing that is shown of every class that lacks none of these.

    Attributes:
        tier: "whole", "blocks", "attention"; "" for what is no pass.
    """

    check: Callable[[str], None]
    needs: tuple[str, ...]
    tier: str = ""

    def classes(self) -> list[str]:
        return [name for name in CLASSES if name not in REFUSED and not LACKS.get(name, {}).keys() & set(self.needs)]


COLUMNS = {
    "quantize": Column(quantize, (), "whole"),
    "compile": Column(compiled, (), "whole"),
    "easycache": Column(easycache, ("whole",), "whole"),
    "predictor-corrector": Column(predictor_corrector, ("whole",), "whole"),
    "svd": Column(svd, ("blocks",), "blocks"),
    "first-block": Column(first_block, ("blocks", "range"), "blocks"),
    "teacache": Column(teacache, ("blocks", "range", "modulation"), "blocks"),
    "fora": Column(fora, ("blocks", "modules"), "blocks"),
    "duca": Column(duca, ("blocks", "range", "modules", "tokens"), "blocks"),
    "sparse_attn": Column(sparse_attn, ("attention",), "attention"),
    "batch": Column(batch, ("blocks",)),
    "guidance": Column(guidance, ("blocks",)),
    "two sizes": Column(two_sizes, ("blocks",)),
}
