"""Copies of a model with a stack on it, what others save of it, and a stack whose every handle was lost."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stack import Stack, StackError

from .conftest import inputs, picture, tiny_denoiser, tiny_pipe
from .lora import save_lora

Build = Callable[[Stack, Path], Stack]
STACKS: dict[str, Build] = {
    "distill": lambda s, lora: s.distill(str(lora)),
    "adapter": lambda s, lora: s.distill(str(lora), switchable=True),
    "int8": lambda s, _: s.quantize("int8", min_features=64),
    "two precisions": lambda s, _: s.quantize("int8", min_features=64, ends="keep"),
    "fp8-weight": lambda s, _: s.quantize("fp8-weight", min_features=64),
    "nf4": lambda s, _: s.quantize("nf4", min_features=64),
    "torchao": lambda s, _: s.quantize("int8", min_features=64, backend="torchao"),
    "bitsandbytes": lambda s, _: s.quantize("nf4", min_features=64, backend="bitsandbytes"),
    "quanto": lambda s, _: s.quantize("int8-weight", min_features=64, backend="quanto"),
    "sage": lambda s, _: s.sage_attn(even_if_slower=True),
    "dense": lambda s, _: s.dense_attn("products"),
    "sparse": lambda s, _: s.sparse_attn(even_if_slower=True),
    "compile": lambda s, _: s.compile(),
    "cache": lambda s, _: s.cache("svd"),
    "per module": lambda s, _: s.cache("taylorseer"),
    "all": lambda s, lora: (
        s.distill(str(lora)).quantize("int8", min_features=64).sparse_attn(even_if_slower=True).compile().cache("svd")
    ),
}


def out(denoiser: Any) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**inputs()).sample


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    save_lora(tiny_denoiser(), folder)
    return folder


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_a_plain_model(name: str, how: str, lora: Path) -> None:
    denoiser = tiny_denoiser()
    plain, state = out(denoiser), {key: t.clone() for key, t in denoiser.state_dict().items()}
    stack = STACKS[name](Stack(denoiser, steps=20), lora).apply()
    made = copy.deepcopy(denoiser) if how == "deepcopy" else pickle.loads(pickle.dumps(denoiser))
    assert torch.equal(out(made), plain)
    assert [type(m) for m in made.modules()] == [type(m) for m in tiny_denoiser().modules()]
    assert [sorted(vars(m)) for m in made.modules()] == [sorted(vars(m)) for m in tiny_denoiser().modules()]
    with pytest.raises(StackError, match="carries no stack"):
        Stack.of(made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    stack.undo()
    assert torch.equal(out(denoiser), plain) and all(torch.equal(t, state[k]) for k, t in denoiser.state_dict().items())


# quanto's tensors cannot be copied, which torch says in its own words.
@pytest.mark.parametrize("name", ["int8", "fp8-weight", "nf4", "torchao", "bitsandbytes"])
def test_a_copy_of_a_frozen_model_is_a_rounded_one_that_works_alone(name: str, lora: Path) -> None:
    stack = STACKS[name](Stack(tiny_denoiser(), steps=20), lora).freeze()
    with torch.no_grad():
        rounded = stack(**inputs()).sample
    made = copy.deepcopy(stack.denoiser)
    assert torch.equal(out(made), rounded)
    with pytest.raises(StackError, match=r"has rounded weights only.* stack\.save\(folder\)"):
        made.state_dict()


@pytest.mark.parametrize("name", STACKS)
def test_others_save_the_original_weights(name: str, lora: Path, tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    state = {key: t.clone() for key, t in denoiser.state_dict().items()}
    stack = STACKS[name](Stack(denoiser, steps=20), lora).apply()
    found = denoiser.state_dict()
    assert list(found) == list(state) and all(torch.equal(found[key], t) for key, t in state.items())
    denoiser.save_pretrained(tmp_path)
    stack.undo()
    read = FluxTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(out(read), out(denoiser))


def test_a_frozen_or_loaded_model_is_not_saved_by_others(tmp_path: Path) -> None:
    stack = Stack(tiny_denoiser()).quantize("int8", min_features=64).freeze()
    with pytest.raises(StackError, match=r"stack\.save\(folder\)"):
        stack.denoiser.save_pretrained(tmp_path)
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack", tiny_denoiser())
    with pytest.raises(StackError, match=r"stack\.save\(folder\)"):
        loaded.denoiser.save_pretrained(tmp_path)
    assert torch.equal(out(loaded.denoiser), out(stack.denoiser))


def test_a_lost_stack_is_found_on_its_model() -> None:
    pipe = tiny_pipe()
    before = picture(pipe)
    picture(Stack(pipe, steps=14).cache("svd"))
    gc.collect()
    with pytest.raises(StackError, match=r"already carries a stack: Stack.of\(model\).undo\(\)"):
        Stack(pipe, steps=14).cache("fora").apply()
    found = Stack.of(pipe)
    assert found is Stack.of(pipe.transformer) and [p.stage for p in found.passes] == ["cache"]
    found.undo()
    with pytest.raises(StackError, match=r"carries no stack: .* Stack\(model\).apply\(\)"):
        Stack.of(pipe)
    assert torch.equal(picture(pipe), before)


def test_pipelines_are_copied_plain_and_saved_plain_or_not_at_all(lora: Path, tmp_path: Path) -> None:
    pipe = tiny_pipe()
    before, scheduler = picture(pipe, 4), pipe.scheduler
    stack = Stack(pipe).distill(str(lora), steps=4, shift=2.0).apply()
    assert pipe.scheduler is not scheduler and not torch.equal(picture(stack, 4), before)
    made = copy.deepcopy(pipe)
    assert made.scheduler.config == scheduler.config and torch.equal(picture(made, 4), before)
    with pytest.raises(StackError, match=r"adapter's scheduler .* undo\(\) .* stack.save\(folder\)"):
        pipe.save_pretrained(tmp_path)
    stack.undo()
    assert pipe.scheduler is scheduler and torch.equal(picture(pipe, 4), before)


def test_a_replaced_transformer_and_a_copied_stack_are_refused() -> None:
    pipe = tiny_pipe()
    before, own = picture(pipe), pipe.transformer
    stack = Stack(pipe, steps=14).cache("svd").apply()
    with pytest.raises(StackError, match=r"a stack is not copied: .* save\(folder\)"):
        copy.deepcopy(stack)
    pipe.transformer = tiny_denoiser()
    with pytest.raises(StackError, match=r"no longer the model that carries this stack: .* Stack\(pipe\)"):
        picture(stack)
    assert torch.equal(picture(pipe), before), "the new one carries nothing"
    stack.undo()
    pipe.transformer = own
    assert torch.equal(picture(pipe), before)


def test_a_copy_below_hooks_of_diffusers_is_refused() -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=20).cache("svd").apply()
    denoiser.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(StackError, match=r"hooks that were put on above a stack: .* undo\(\) the stack first"):
        copy.deepcopy(denoiser)
    stack.undo()
    assert copy.deepcopy(denoiser).x_embedder.weight.dtype == torch.float8_e4m3fn
