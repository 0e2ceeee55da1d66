"""State kept elsewhere is the same state: nothing of a picture tells where it was."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.cap import Offload, offload
from stack.caching.memory import state_size, tensors_of
from stack.caching.placement import ON_DEVICE, OnHost, first_on_device
from stack.core.facts import Machine
from stack.reference.pipeline import ShapesFluxPipeline

from ..conftest import PROMPT, inputs, picture, tiny_pipe
from .test_memory import flux

STEPS = 14
CPU = torch.device("cpu")
METHODS = ("taylorseer-published", "svd-published-blocks", "hicache-published", "rfc-published")


class Elsewhere:
    """A host that counts: keeps copies, hands out copies, and knows how many bytes of these are still in use."""

    on_host = True

    def __init__(self) -> None:
        self.put_in: list[torch.Tensor] = []  # held, since what is gone may share its id with what comes
        self.got: list[int] = []
        self.kept: list[weakref.ref[torch.Tensor]] = []
        self.in_use = self.most_in_use = 0

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        self.put_in.append(tensor)
        self.kept.append(weakref.ref(copy))
        return copy

    def get(self, kept: torch.Tensor) -> torch.Tensor:
        copy = kept.clone()
        self.got.append(id(kept))
        self.in_use += copy.nbytes
        self.most_in_use = max(self.most_in_use, self.in_use)
        weakref.finalize(copy, self._let_go, copy.nbytes)
        return copy

    def _let_go(self, nbytes: int) -> None:
        self.in_use -= nbytes


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """A machine that says it has CUDA, and a host that counts."""
    double = Elsewhere()
    monkeypatch.setattr("stack.model_facts.machine_of", lambda device: Machine("cuda", "made up"))
    monkeypatch.setattr("stack.caching.placement.OnHost", lambda device: double)
    return double


def small() -> ShapesFluxPipeline:
    pipe = tiny_pipe()
    pipe.register_modules(transformer=flux().eval())
    return pipe


def capped(pipe: ShapesFluxPipeline, method: str, stay: int) -> tuple[Stack, int, Offload]:
    """A preset under the smallest cap that leaves so many blocks or modules on the device, and that cap."""
    stack, options = Stack(pipe, steps=STEPS), options_of(method)
    size = state_size(Cache(method, **options).policy, stack.facts)
    assert size is not None
    away = [unit.bytes for unit in size.units[stay:]]
    cap = size.total - sum(away) + max(away)
    split = offload(Cache(method, **options, max_bytes=cap).policy, stack.facts)
    assert split is not None and split.units == stay
    return stack.cache(method, **options, max_bytes=cap), cap, split


def options_of(method: str) -> dict[str, Any]:
    return {"threshold": 0.3} if method == "rfc-published" else {"interval": 4, "warmup": 3}


@pytest.mark.parametrize(("stay", "prompt"), [(0, PROMPT), (2, [PROMPT, "a green circle"])], ids=["one", "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_the_same_and_the_cap_is_kept(
    method: str, stay: int, prompt: str | list[str], elsewhere: Elsewhere
) -> None:
    pipe = small()
    with torch.no_grad():
        untouched = pipe.transformer(**inputs()).sample
    with Stack(pipe, steps=STEPS).cache(method, **options_of(method)) as stack:
        expected, figures = picture(stack, STEPS, prompt), stack.report().passes["cache"]
    assert figures["host_bytes"] == 0 and 0 < figures["cached_steps"] < STEPS and not elsewhere.kept

    stack, cap, split = capped(pipe, method, stay)
    count = 1 if isinstance(prompt, str) else len(prompt)
    held: list[dict[str, Any]] = []
    stack.apply()
    hook = pipe.transformer.register_forward_hook(lambda *_: held.append(stack.report().passes["cache"]))
    assert torch.equal(picture(stack, STEPS, prompt), expected)
    hook.remove()
    assert len(held) == STEPS
    assert max(f["bytes"] for f in held) + elsewhere.most_in_use <= cap * count
    assert 0 < elsewhere.most_in_use <= split.in_use * count
    assert held[-1]["host_bytes"] == split.host * count
    size = state_size(Cache(method).policy, stack.facts)
    assert size is not None
    assert 0.98 * (split.device - size.bases) * count <= held[-1]["bytes"] <= 1.02 * split.device * count

    stack.undo()
    gc.collect()
    with torch.no_grad():
        assert torch.equal(pipe.transformer(**inputs()).sample, untouched)
    assert elsewhere.in_use == 0 and not any(ref() is not None for ref in elsewhere.kept)


def test_taylorseer_moves_what_it_must(elsewhere: Elsewhere) -> None:
    """Full steps 0, 1, 2, 6, 10 of 14: the first differences are made one by one."""
    stack, _, split = capped(small(), "taylorseer-published", 2)
    with stack:
        picture(stack, STEPS)
        assert [r.step for r in stack.report().steps if r.kind == "full"] == [0, 1, 2, 6, 10]
    away = 10 - split.features  # of six modules the first two, attention and MLP of a block, have four features
    assert split.features == 4
    assert len(elsewhere.put_in) == away * (1 + 2 + 3 + 3 + 3)
    to_measure, to_update, to_predict = 1 + 2 + 3 + 3, 1 + 2 + 2 + 2, 9 * 3
    assert len(elsewhere.got) == away * (to_measure + to_update + to_predict)


@pytest.mark.parametrize(
    "method", [*METHODS, "svd-published", "svd-published-ema", "fora-published", "freqca-published"]
)
@pytest.mark.parametrize("kept_in", ["", "bfloat16"])
def test_every_tensor_is_moved_once(method: str, kept_in: str) -> None:
    policy = Cache(method, state_dtype=kept_in).policy
    there, here = Elsewhere(), policy.new_predictor(grid=(4, 4))
    order = policy.forecast.effective_order
    needed = order + bool(policy.forecast.smoothing) if order else 0  # older differences in those of a full step
    predictor = policy.new_predictor(there, (4, 4))
    for number in range(5):
        feature = torch.randn(1, 16, 8)
        here.update(feature, 1 - 0.1 * number)
        predictor.update(feature, 1 - 0.1 * number)
        assert len(there.put_in) == len({id(t) for t in there.put_in}) and len(there.got) == len(set(there.got))
        assert policy.forecast.level or len(there.got) == min(number, needed)
        there.put_in, there.got = [], []
        assert torch.equal(predictor.predict(0.45), here.predict(0.45))
        assert len(there.got) == min(number, order) + 1 == len(set(there.got))
        there.got = []
    assert torch.equal(predictor.last, here.last) and len(there.got) == 1
    bases = here.split.bytes if here.split else 0
    size = tensors_of(policy.forecast) * 16 * 8 * (2 if kept_in else 4)
    assert (here.bytes, here.host_bytes) == (size + bases, 0)
    assert (predictor.bytes, predictor.host_bytes) == (bases, size)


def test_the_host_keeps_copies() -> None:
    """On a CPU both are the same memory, and still nothing is shared."""
    place, given = OnHost(CPU), torch.arange(6.0).view(2, 3).mT
    kept = place.put(given)
    given.zero_()
    back = place.get(kept)
    assert back.stride() == kept.stride() == (1, 3) and not kept.is_pinned()
    kept.zero_()
    assert back.flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_the_first_features_stay() -> None:
    place = first_on_device(2)
    assert [place(number, CPU) is ON_DEVICE for number in range(4)] == [True, True, False, False]
    last = place(3, torch.device("meta"))
    assert isinstance(last, OnHost) and last.device == torch.device("meta")


def test_the_real_host_gives_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.model_facts.machine_of", lambda device: Machine("cuda", "made up"))
    pipe = small()
    with Stack(pipe, steps=STEPS).cache("svd-published-blocks", **options_of("svd-published-blocks")) as stack:
        expected = picture(stack, STEPS)
    stack, _, split = capped(pipe, "svd-published-blocks", 1)
    with stack:
        assert f"1 of 4 blocks, {split.host / 1e6:.1f} MB in pinned host memory with 3" in stack.explain()
        assert torch.equal(picture(stack, STEPS), expected)
        assert stack.report().passes["cache"]["host_bytes"] == split.host


def test_a_cpu_has_nowhere_to_move_state_to() -> None:
    with pytest.raises(StackError, match=r"max_bytes allows 0\.0 MB"):
        Stack(small(), steps=STEPS).cache("taylorseer-published", max_bytes=1000).apply()
