"""What a user does to a model that carries a stack outlives undo(), bit for bit, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig
from torch import nn

from stack import Stack, StackError

from .conftest import inputs, picture, tiny_denoiser, tiny_pipe
from .lora import save_lora

Change = Callable[[Any], Any]
CPU = torch.device("cpu")


class Halved(FluxAttnProcessor):
    """A processor of a user's own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        return tuple(0.5 * x for x in made) if isinstance(made, tuple) else 0.5 * made


class Around(nn.Module):
    """A user's module around whatever was there."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.inner(x)


class Holds:
    """A user's processor around whatever was there."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def wrapped_forward(denoiser: Any) -> None:
    inner = denoiser.forward
    denoiser.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def wrapped_modules(denoiser: Any) -> None:
    for block in denoiser.transformer_blocks:
        block.attn.to_q = Around(block.attn.to_q)


def wrapped_processors(denoiser: Any) -> None:
    for module in denoiser.modules():
        if "processor" in vars(module):
            module.processor = Holds(module.processor)


def lora(denoiser: Any) -> None:
    torch.manual_seed(5)
    denoiser.add_adapter(LoraConfig(r=4, target_modules=["to_q", "proj_mlp"], init_lora_weights=False))


def fused_lora(denoiser: Any) -> None:
    lora(denoiser)
    denoiser.fuse_lora()
    denoiser.unload_lora()


def hooked(denoiser: Any) -> None:
    for block in denoiser.transformer_blocks:
        block.attn.to_q.register_forward_hook(lambda _, args, made: 0.5 * made)


CHANGES: dict[str, Change] = {
    "bf16": lambda d: d.to(torch.bfloat16).to(torch.bfloat16),
    "half": lambda d: d.half(),
    "double": lambda d: d.double(),
    "processors": lambda d: d.set_attn_processor(Halved()),
    "processors around": wrapped_processors,
    "attention backend": lambda d: d.set_attention_backend("_native_math"),
    "layerwise casting": lambda d: d.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
    "sequential offload": lambda d: cpu_offload(d, CPU),
    "sequential offload and back": lambda d: remove_hook_from_module(cpu_offload(d, CPU), recurse=True),
    "group offload": lambda d: d.enable_group_offload(CPU, CPU, "leaf_level"),
    "blocks offloaded": lambda d: apply_group_offloading(d, CPU, CPU, "block_level", num_blocks_per_group=1),
    "another cache": lambda d: d.enable_cache(FirstBlockCacheConfig(threshold=0.0)),
    "other weights": lambda d: d.load_state_dict({key: 0.5 * t for key, t in tiny_denoiser().state_dict().items()}),
    "qkv fused": lambda d: d.fuse_qkv_projections(),
    "compiled": lambda d: d.compile_repeated_blocks(backend="eager"),
    "checkpointing": lambda d: d.enable_gradient_checkpointing(),
    "lora": lora,
    "fused lora": fused_lora,
    "forward": wrapped_forward,
    "modules around": wrapped_modules,
    "module hooks": hooked,
    "frozen": lambda d: d.requires_grad_(False),
    "training": lambda d: d.train(),
}
Build = Callable[[Stack, Path], Stack]
STACKS: dict[str, Build] = {
    "distill": lambda s, lora: s.distill(str(lora)),
    "quantize": lambda s, _: s.quantize("int8", min_features=64),
    "adapter": lambda s, lora: s.distill(str(lora), switchable=True),
    "sparse": lambda s, _: s.sparse_attn(even_if_slower=True),
    "compile": lambda s, _: s.compile(),
    "cache": lambda s, _: s.cache("svd"),
    "all": lambda s, lora: (
        s.distill(str(lora)).quantize("int8", min_features=64).sparse_attn(even_if_slower=True).compile().cache("svd")
    ),
}
# Refused while weights are other ones than the model's own.
NEED_PLAIN_WEIGHTS = {"other weights", "layerwise casting", "group offload", "qkv fused", "lora", "fused lora"}
OTHER_WEIGHTS = {"distill", "quantize", "adapter", "all"}


def out(denoiser: Any) -> torch.Tensor:
    dtype = next(denoiser.x_embedder.parameters()).dtype
    dtype = torch.float32 if dtype.itemsize == 1 else dtype
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs().items()}
    with torch.no_grad(), denoiser.cache_context("only"):
        return denoiser(**given).sample


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    save_lora(tiny_denoiser(), folder)
    return folder


# accelerate looks for linears with branches beside them in the state dict, which has the plain names.
CASES = [(s, c) for s in STACKS for c in CHANGES if s != "adapter" or not c.startswith("sequential")]


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_later_change_outlives_undo(name: str, change: str, file: Path) -> None:
    alone, denoiser = tiny_denoiser(), tiny_denoiser()
    stack = STACKS[name](Stack(denoiser, steps=20), file).apply()
    if change in NEED_PLAIN_WEIGHTS and name in OTHER_WEIGHTS:
        before = out(alone)
        with pytest.raises(StackError, match=r"\(\) on a model that carries .*undo\(\) the stack first"):
            CHANGES[change](denoiser)
        assert torch.equal(out(stack.undo().denoiser), before)
        return
    CHANGES[change](alone)
    CHANGES[change](denoiser)
    stack.undo()
    assert torch.equal(out(denoiser), out(alone))
    state = alone.state_dict()
    real = {key: t for key, t in denoiser.state_dict().items() if not (t.is_meta or state[key].is_meta)}
    assert all(torch.equal(t, state[key]) for key, t in real.items())
    assert [p.dtype for p in denoiser.parameters()] == [p.dtype for p in alone.parameters()]
    assert [p.requires_grad for p in denoiser.parameters()] == [p.requires_grad for p in alone.parameters()]
    assert [type(m) for m in denoiser.modules()] == [type(m) for m in alone.modules()]


def test_hooks_of_a_user_run_under_the_stack_and_can_be_removed_behind_it() -> None:
    denoiser, ran = tiny_denoiser(), []
    before, linear = out(denoiser), denoiser.transformer_blocks[0].attn.to_q
    earlier = linear.register_forward_hook(lambda *_: ran.append("earlier"))
    stack = Stack(denoiser).quantize("int8", min_features=64).apply()
    later = denoiser.transformer_blocks[0].attn.to_q.register_forward_hook(lambda *_: ran.append("later"))
    out(denoiser)
    assert ran == ["earlier", "later"]
    assert torch.equal(out(stack.undo().denoiser), before) and len(ran) == 4
    earlier.remove()
    later.remove()
    assert torch.equal(out(denoiser), before) and len(ran) == 4


def test_originals_are_cast_with_the_model_and_copied_so() -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser).quantize("int8", min_features=64).apply()
    denoiser.to(torch.bfloat16)
    assert {t.dtype for t in denoiser.state_dict().values()} == {torch.bfloat16}
    assert {p.dtype for p in stack.undo().denoiser.parameters()} == {torch.bfloat16}


def biases_set(denoiser: Any) -> None:
    to_q = denoiser.transformer_blocks[0].attn.to_q
    to_q.bias = nn.Parameter(torch.full((128,), 0.25))


def weights_set(denoiser: Any) -> None:
    torch.manual_seed(6)
    denoiser.transformer_blocks[0].attn.to_q.weight = nn.Parameter(0.1 * torch.randn(128, 128))


def shared(denoiser: Any) -> None:
    attn = denoiser.transformer_blocks[0].attn
    attn.to_k = attn.to_q


TO_LINEARS: dict[str, Change] = {
    "there and back": lambda d: d.to(torch.bfloat16).to(torch.float32),
    "a part there and back": lambda d: d.transformer_blocks[0].half().float(),
    "up and back": lambda d: d.double().float(),
    "bias set": biases_set,
    "weight set": weights_set,
    "shared": shared,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("name", ["distill", "quantize", "two precisions", "fp8", "adapter", "all"])
@pytest.mark.parametrize("change", TO_LINEARS)
def test_linears_that_stand_in_for_others_come_back_as_the_user_left_them(name: str, change: str, file: Path) -> None:
    builds: dict[str, Build] = {
        **STACKS,
        "two precisions": lambda s, _: s.quantize("int8", min_features=64, ends="keep"),
        "fp8": lambda s, _: s.quantize("fp8-weight", min_features=64),
    }
    alone, denoiser = tiny_denoiser(), tiny_denoiser()
    stack = builds[name](Stack(denoiser, steps=20), file).apply()
    TO_LINEARS[change](alone)
    TO_LINEARS[change](denoiser)
    state = alone.state_dict()
    if change != "shared":
        assert all(torch.equal(t, state[key]) for key, t in denoiser.state_dict().items())
    stack.undo()
    assert torch.equal(out(denoiser), out(alone))
    assert {k for k, t in denoiser.state_dict().items() if not torch.equal(t, state[k])} == set()
    assert [(n, type(m), m.training) for n, m in denoiser.named_modules()] == [
        (n, type(m), m.training) for n, m in alone.named_modules()
    ]
    assert not any("_apply" in vars(m) for m in denoiser.modules())


def first_block(denoiser: Any) -> None:
    block = denoiser.transformer_blocks[0]
    block.forward = MethodType(type(block).forward, block)


def last_block(denoiser: Any) -> None:
    block = denoiser.single_transformer_blocks[-1]
    block.forward = MethodType(type(block).forward, block)


def around_the_first(denoiser: Any) -> None:
    block = denoiser.transformer_blocks[0]
    inner = block.forward
    block.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def no_own_forward(denoiser: Any) -> None:
    vars(denoiser.transformer_blocks[0]).pop("forward", None)


@pytest.mark.parametrize("method", ["svd", "fora", "speca-published", "first-block", "reuse"])
@pytest.mark.parametrize("change", [first_block, last_block, around_the_first, no_own_forward])
def test_a_forward_that_is_exchanged_later_is_found_out_at_the_next_call(method: str, change: Change) -> None:
    pipe, alone = tiny_pipe(), tiny_pipe()
    stack = Stack(pipe, steps=14).cache(method)
    picture(stack)
    change(pipe.transformer)
    change(alone.transformer)
    bare = picture(alone)
    assert torch.equal(picture(pipe), picture(Stack(alone, steps=14).cache(method)))
    said = any("forwards of its modules" in each for each in stack.report().warnings)
    assert said is not (change is last_block and method == "fora")  # which has nothing there
    stack.undo()
    assert torch.equal(picture(pipe), bare)


def test_a_cache_is_not_used_where_the_denoisers_forward_was_replaced() -> None:
    pipe = tiny_pipe()
    before = picture(pipe)
    stack = Stack(pipe, steps=14).cache("fora")
    picture(stack)
    pipe.transformer.forward = MethodType(type(pipe.transformer).forward, pipe.transformer)
    with pytest.raises(StackError, match=r"forward replaced after apply\(\)\? undo\(\) the stack and apply it again"):
        picture(pipe)
    stack.undo()
    assert torch.equal(picture(pipe), before)
