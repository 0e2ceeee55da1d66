"""A quantized stack in a folder: the same pictures bit for bit, no full-precision weight needed, originals dropped."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open

from stack import Stack, StackError
from stack.quant.backends.base import storage_bytes
from stack.quant.linears.int8 import Int8Linear
from tests.conftest import inputs, picture, tiny_denoiser, tiny_pipe
from tests.lora import save_lora

STEPS = 14
Q = "single_transformer_blocks.0.attn.to_q"


def output(denoiser: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**inputs(), return_dict=False)[0]


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4-weight", "nf4", "fp8-weight"])
def test_outputs_of_a_loaded_stack_are_the_saved_ones_bit_for_bit(tmp_path: Path, scheme: str) -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser).quantize(scheme, skip=("*.to_k",)).apply()
    wanted, count = output(denoiser), stack.save(tmp_path)
    other = FluxTransformer2DModel.from_config(denoiser.config).eval()  # other random weights
    loaded = Stack.load(tmp_path, other)
    assert count == sum(type(m).__name__ in ("Int8Linear", "WeightOnlyLinear") for m in other.modules()) > 6
    assert torch.equal(output(other), wanted)
    assert loaded.facts.quantized_by == "native" and loaded.facts.weight_bits == (4 if "4" in scheme else 8)


def test_a_model_without_weights_is_enough(tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    with Stack(denoiser).quantize("int8") as stack:
        wanted = output(denoiser)
        stack.save(tmp_path)
    with torch.device("meta"):
        empty = FluxTransformer2DModel.from_config(denoiser.config).eval()
    Stack.load(tmp_path, empty)
    assert torch.equal(output(empty), wanted)
    full = storage_bytes(denoiser.parameters())
    held = storage_bytes(
        [*empty.parameters(), *(t for m in empty.modules() if isinstance(m, Int8Linear) for t in m.packed.tensors())]
    )
    chosen = sum(denoiser.get_submodule(p).weight.nbytes for p, m in empty.named_modules() if isinstance(m, Int8Linear))
    assert held < full - 0.7 * chosen  # a float takes 4 bytes here


def test_the_passes_above_and_the_scheduler_come_along(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    with (
        Stack(pipe, steps=STEPS)
        .quantize("int8", min_features=64)
        .sparse_attn(keep=0.5)
        .cache("svd", interval=4) as stack
    ):
        wanted = picture(stack, STEPS)
        stack.save(tmp_path)
    other = tiny_pipe()
    torch.nn.init.normal_(other.transformer.get_submodule(Q).weight)
    loaded = Stack.load(tmp_path, other)
    assert [p.stage for p in loaded.passes] == ["sparse_attn", "cache"]
    assert torch.equal(picture(loaded, STEPS), wanted)
    loaded.undo()
    assert isinstance(other.transformer.get_submodule(Q), Int8Linear)  # for good


LEVELS = (1.0, 0.7, 0.5, 0.2)


def card_of_levels(folder: Path, scheduler: str, sampler: str) -> str:
    save_lora(tiny_denoiser(), folder, name="own")
    (folder / "own.toml").write_text(
        f'steps = 4\n[weights.files]\ntransformer = "own.safetensors"\n[schedule]\nkind = "sigmas"\n'
        f'sigmas = {list(LEVELS)}\n[scheduler]\nclass = "{scheduler}"\nsampler = "{sampler}"\n'
    )
    return str(folder / "own.toml")


@pytest.mark.parametrize("sampler", ["FlowMatchEulerDiscreteScheduler euler", "FlowMatchLCMScheduler lcm"])
def test_the_schedule_of_a_fused_adapter_comes_along(tmp_path: Path, sampler: str) -> None:
    card = card_of_levels(tmp_path, *sampler.split())
    with Stack(tiny_pipe(), steps=STEPS).distill(card).quantize("int8", min_features=64) as stack:
        wanted, weights = picture(stack, 4), output(stack.denoiser)
        stack.save(tmp_path / "saved")
    loaded = Stack.load(tmp_path / "saved", pipe := tiny_pipe())
    scheduler = pipe.scheduler
    assert torch.equal(picture(loaded, 4), wanted) and loaded.sigmas == pytest.approx(LEVELS)
    assert torch.equal(output(pipe.transformer), weights)  # the update is not added twice
    loaded.save(tmp_path / "again")
    loaded.undo()
    assert pipe.scheduler is scheduler
    assert torch.equal(picture(Stack.load(tmp_path / "again", tiny_pipe()), 4), wanted)


@pytest.mark.parametrize("switchable", [False, True])
@pytest.mark.parametrize("damage", ["gone", "no card"])
def test_a_damaged_card_leaves_the_model_as_it_was(tmp_path: Path, switchable: bool, damage: str) -> None:
    card = card_of_levels(tmp_path, "FlowMatchEulerDiscreteScheduler", "euler")
    with Stack(tiny_pipe()).distill(card, switchable=switchable).quantize("int8", min_features=64) as stack:
        stack.save(tmp_path / "saved")
    carried = tmp_path / "saved" / "own.toml"
    carried.unlink() if damage == "gone" else carried.write_text("steps = -1")
    pipe = tiny_pipe()
    before, scheduler = output(pipe.transformer), pipe.scheduler
    with pytest.raises(StackError, match=r"own"):
        Stack.load(tmp_path / "saved", pipe)
    assert torch.equal(output(pipe.transformer), before) and pipe.scheduler is scheduler
    assert not any(isinstance(module, Int8Linear) for module in pipe.transformer.modules())


def test_the_schedule_of_a_fused_adapter_on_a_bare_denoiser(tmp_path: Path) -> None:
    card = card_of_levels(tmp_path, "FlowMatchEulerDiscreteScheduler", "euler")
    with Stack(tiny_denoiser()).distill(card).quantize("int8") as stack:
        stack.save(tmp_path / "saved")
    loaded = Stack.load(tmp_path / "saved", tiny_denoiser()).apply()
    assert loaded.clock.timetable.schedule.sigmas == LEVELS


def test_an_adapter_that_became_a_branch_comes_along(tmp_path: Path) -> None:
    card = card_of_levels(tmp_path, "FlowMatchEulerDiscreteScheduler", "euler")
    with Stack(tiny_pipe(), steps=4).quantize("int8", min_features=64) as stack:
        stack.save(tmp_path / "rounded")
    with Stack.load(tmp_path / "rounded", tiny_pipe()).distill(card) as stack:
        wanted = picture(stack, 4)
        stack.save(tmp_path / "saved")
    assert torch.equal(picture(Stack.load(tmp_path / "saved", tiny_pipe()), 4), wanted)


def test_what_is_quantized_already_is_not_quantized_again(tmp_path: Path) -> None:
    with Stack(tiny_denoiser()).quantize("nf4") as stack:
        stack.save(tmp_path)
    loaded = Stack.load(tmp_path, tiny_denoiser())
    with pytest.raises(StackError, match="already quantized by native to 4 bits"):
        loaded.quantize("int8").apply()


def test_a_folder_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"written by Stack\.save"):
        Stack.load(tmp_path, tiny_denoiser())
    with Stack(tiny_denoiser()).quantize("int8") as stack:
        stack.save(tmp_path)
    config = {**tiny_denoiser().config, "num_attention_heads": 4}
    other = FluxTransformer2DModel.from_config(config).eval()
    before = output(other)
    with pytest.raises(StackError, match="saved from another model"):
        Stack.load(tmp_path, other)
    assert torch.equal(output(other), before)
    (tmp_path / "quantized.safetensors").unlink()
    with pytest.raises(StackError, match=r"expected quantized\.safetensors"):
        Stack.load(tmp_path, other)


def test_only_what_this_package_converted_can_be_saved(tmp_path: Path) -> None:
    stack = Stack(tiny_denoiser()).quantize("int8", ends="keep")
    with pytest.raises(StackError, match="applied stack"):
        stack.save(tmp_path)
    with stack, pytest.raises(StackError, match="in two precisions"):
        stack.save(tmp_path)
    with Stack(tiny_denoiser()).sparse_attn() as plain, pytest.raises(StackError, match="0 linears are quantized"):
        plain.save(tmp_path)


def test_the_file_holds_rounded_weights_only(tmp_path: Path) -> None:
    with Stack(tiny_denoiser()).quantize("int8") as stack:
        stack.save(tmp_path)
    with safe_open(tmp_path / "quantized.safetensors", "pt") as file:
        entries = json.loads(file.metadata()["linears"])
        assert f"{Q}.weight" not in list(file.keys()) and file.get_tensor(f"{Q}.values").dtype == torch.int8
    assert entries[Q]["group"] == entries[Q.replace("to_q", "to_k")]["group"]  # still rounded together


def test_freeze_drops_the_originals_and_says_so_later() -> None:
    denoiser = tiny_denoiser()
    gone = weakref.ref(denoiser.get_submodule(Q).weight)
    stack = Stack(denoiser).quantize("int8").sparse_attn(keep=0.5).apply()
    wanted = output(denoiser)
    gc.collect()
    assert gone() is not None
    stack.freeze()
    gc.collect()
    assert gone() is None
    assert torch.equal(output(denoiser), wanted)
    with pytest.raises(StackError, match=r"cannot take off quantize: freeze\(\) dropped the original weights"):
        stack.undo()
    assert torch.equal(output(denoiser), wanted)
    stack.undo("sparse_attn")
    with pytest.raises(StackError, match="cannot take off quantize"):
        stack.undo("quantize")


def test_freeze_needs_something_to_drop() -> None:
    with pytest.raises(StackError, match="expected a stack with quantize"):
        Stack(tiny_denoiser()).sparse_attn().freeze()
    with pytest.raises(StackError, match="ends='keep' runs some steps with them"):
        Stack(tiny_denoiser()).quantize("int8", ends="keep").freeze()
