"""Packed weights go where the model goes, and stay as they are when it is cast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stack.core.facts import machine_of
from stack.quant.backends.base import storage_bytes
from stack.quant.kernels.product import PLAIN, Kernel, kernel_for
from stack.quant.linears.int8 import Int8Linear, convert_group
from stack.quant.linears.two_precisions import Phase, TwoPrecisions
from stack.quant.linears.weight_only import WeightOnlyLinear
from stack.quant.schemes import SCHEMES

HERE = kernel_for(machine_of(torch.device("cpu")))
STORED = ("int8-weight", "int4-weight", "nf4", "fp8-weight")
Make = Callable[[nn.Linear], nn.Module]
KINDS: dict[str, Make] = {
    "int8": lambda linear: Int8Linear(linear, HERE),
    "int8 plain": lambda linear: Int8Linear(linear, PLAIN),
    **{name: lambda linear, name=name: WeightOnlyLinear(linear, SCHEMES[name]) for name in STORED},
}
MOVABLE = [name for name in KINDS if name != "int8"]


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """What a product of the module reads."""
    assert isinstance(module, (Int8Linear, WeightOnlyLinear))
    return module.packed.tensors() if isinstance(module, Int8Linear) else module.stored.tensors()


def made(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[name](nn.Linear(256, 128).to(dtype))


@pytest.mark.parametrize("name", MOVABLE)
def test_every_packed_tensor_is_a_buffer_and_none_a_key(name: str) -> None:
    module = made(name)
    held = {buffer.untyped_storage().data_ptr() for buffer in module.buffers()}
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors_of(module)} <= held
    assert list(module.state_dict()) == ["bias"]


@pytest.mark.parametrize("name", KINDS)
def test_everything_moves(name: str) -> None:
    module = made(name)
    bytes_here = storage_bytes(tensors_of(module))
    moved = module.to("meta")
    tensors = [*tensors_of(moved), *moved.buffers(), *moved.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert sum(tensor.nbytes for tensor in tensors_of(moved)) == pytest.approx(bytes_here, rel=0.02)  # oneDNN pads
    assert moved(torch.empty(7, 256, device="meta")).shape == (7, 128)


@pytest.mark.parametrize("kernel", [HERE, PLAIN], ids=lambda kernel: kernel.name)
def test_what_leaves_the_cpu_keeps_its_levels(kernel: Kernel) -> None:
    """`to_empty` goes through the same door as `.to("cuda")`; here the weight comes back by hand."""
    (module,), x = convert_group([nn.Linear(96, 48)], kernel), torch.randn(9, 96)
    wanted, before = module(x), module.packed
    values = before.weight.to_dense() if before.opaque else before.weight
    kept = values.clone(), before.step.clone(), module.bias.detach().clone()
    module.to("meta")
    assert module.kernel == "int_mm" and module.values is not None and module.values.shape == (96, 48)
    module.to_empty(device="cpu")
    module.values.copy_(kept[0])
    module.step.view(torch.float32).copy_(kept[1])
    module.bias.data.copy_(kept[2])
    torch.testing.assert_close(module(x), wanted, rtol=1e-6, atol=1e-6)


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "to(float16)": lambda module: module.to(torch.float16),
    "bfloat16": lambda module: module.bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_cast_there_and_back_changes_the_bias_alone(name: str, cast: str) -> None:
    module, x = made(name), torch.randn(40, 256)
    bits = [tensor.clone() for tensor in module.buffers()]
    wanted = module(x)
    bias = module.bias.clone()
    CASTS[cast](module)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), bits, strict=True))
    there = module(x.to(module.bias.dtype))
    assert there.dtype == module.bias.dtype
    assert float((there.float() - wanted).norm() / wanted.norm()) < 0.01
    module.float()
    module.bias.copy_(bias)
    assert torch.equal(module(x), wanted)


def test_a_cast_of_a_model_in_bf16_keeps_its_steps() -> None:
    """Steps below what float16 can hold would be 0 if they were cast."""
    linear = nn.Linear(256, 128, bias=False).to(torch.bfloat16)
    linear.weight.data.mul_(1e-8)
    for name in STORED:
        module = WeightOnlyLinear(linear, SCHEMES[name])
        wanted = module(torch.randn(5, 256, generator=torch.Generator().manual_seed(1)))
        got = module.half().float()(torch.randn(5, 256, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(got, wanted) and float(got.norm()) > 0


def test_both_precisions_move() -> None:
    linear = nn.Linear(64, 64)
    both = TwoPrecisions(Int8Linear(linear, HERE), WeightOnlyLinear(linear, SCHEMES["nf4"]), Phase()).to("meta")
    assert {tensor.device.type for part in (both.ends, both.middle) for tensor in tensors_of(part)} == {"meta"}
