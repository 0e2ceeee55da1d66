"""Saved stacks that are damaged: one line with the true reason, and the model as it was, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stack import Stack, StackError
from stack.quant.linears.int8 import Int8Linear
from stack.quant.saved import put_on, read_denoiser
from tests.conftest import picture, tiny_denoiser, tiny_pipe
from tests.fuzz.saved import bits, same
from tests.lora import save_lora

Q = "single_transformer_blocks.0.attn.to_q"
FILE, RECIPE = "quantized.safetensors", "recipe.toml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved int8 stack."""
    with Stack(tiny_pipe(), steps=6).quantize("int8", min_features=64).cache("svd", interval=3) as stack:
        stack.save(tmp_path / "saved")
    return tmp_path / "saved"


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None], digest: bool) -> None:
    """Write the weights again with other tensors or another header; the recipe knows of it if `digest`."""
    with safe_open(folder / FILE, "pt") as file:
        about = json.loads(file.metadata()["linears"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict: not iterable
    change(tensors, about)
    save_file(tensors, folder / FILE, metadata={"linears": json.dumps(about)})
    if digest:
        lines = (folder / RECIPE).read_text().splitlines()
        (folder / RECIPE).write_text("\n".join(line for line in lines if not line.startswith("weights = ")))


def put(name: str, value: Any) -> Callable[..., None]:
    """A change of one tensor: by a function of it, or gone."""

    def change(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        old = tensors.pop(name)
        if value is not None:
            tensors[name] = value(old.clone()).contiguous()

    return change


def entry(**values: Any) -> Callable[..., None]:
    """A change of what the header says of one linear."""
    return lambda tensors, about: about[Q].update(values)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


BROKEN = {
    "nan in a step": (put(f"{Q}.step", with_nan), rf"{Q}.step: expected finite numbers, got NaN"),
    "nan in a weight": (put("x_embedder.weight", with_nan), "x_embedder.weight: expected finite numbers"),
    "a step of 0": (put(f"{Q}.step", torch.zeros_like), rf"{Q}.step: expected steps above 0, got 0.0"),
    "another type": (put(f"{Q}.values", torch.Tensor.float), rf"{Q}.values: expected torch.int8, got torch.float32"),
    "another shape": (
        put(f"{Q}.values", lambda t: t[:-1]),
        rf"{Q}.values: expected shape \(128, 128\), got \(127",
    ),
    "a missing step": (put(f"{Q}.step", None), rf"{Q}.step: expected shape \(128,\), got none"),
    "a missing weight": (put("x_embedder.weight", None), r"x_embedder.weight: expected shape .* got none"),
    "one too many": (lambda t, a: t.update(x=torch.zeros(1)), "unknown tensor x"),
    "an unknown scheme": (entry(scheme="int3"), "unknown quantization scheme 'int3'"),
    "another scheme": (entry(scheme="nf4", group_size=64, features=128), rf"{Q}.values: expected shape"),
    "a group of a word": (entry(group="a"), rf"{Q}.group: expected a whole number of at least 0, got 'a'"),
    "an unknown key": (entry(colour=1), "unknown entry of .* 'colour'"),
    "no linear": (lambda t, a: a.update(x=a.pop(Q)), "x is no linear of it"),
    "a list for a table": (lambda t, a: a.update({Q: [1]}), "linears: expected a table"),
}


@pytest.mark.parametrize(("change", "told"), BROKEN.values(), ids=BROKEN.keys())
def test_damage_is_named_and_the_model_left_as_it_was(folder: Path, change: Any, told: str) -> None:
    changed(folder, change, digest=True)
    pipe = tiny_pipe()
    before, scheduler = bits(pipe.transformer), pipe.scheduler
    with pytest.raises(StackError, match=told):
        Stack.load(folder, pipe)
    assert same(before, bits(pipe.transformer)) and pipe.scheduler is scheduler


def test_changed_weights_are_noticed_by_their_digest(folder: Path) -> None:
    changed(folder, put(f"{Q}.values", lambda t: t.roll(1, 0)), digest=False)
    pipe = tiny_pipe()
    before = bits(pipe.transformer)
    with pytest.raises(StackError, match=r"is not the file that recipe\.toml was written with"):
        Stack.load(folder, pipe)
    assert same(before, bits(pipe.transformer))


@pytest.mark.parametrize("name", [FILE, RECIPE, "scheduler/scheduler_config.json"])
def test_a_link_out_of_the_folder_is_refused_by_name(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    os.replace(folder / name, outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(StackError, match=f"'{name}' is a link out of"):
        Stack.load(folder, tiny_pipe())


def test_a_scheduler_with_nan_is_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shift": float("nan")}))
    pipe = tiny_pipe()
    before = bits(pipe.transformer)
    with pytest.raises(StackError, match="shift: expected a finite number, got nan"):
        Stack.load(folder, pipe)
    assert same(before, bits(pipe.transformer))


def test_a_second_load_tells_the_true_reason(folder: Path) -> None:
    pipe = tiny_pipe()
    Stack.load(folder, pipe)
    before = bits(pipe.transformer)
    with pytest.raises(StackError, match=r"rounded already \(\d+ linears.*load the model again"):
        Stack.load(folder, pipe)
    assert same(before, bits(pipe.transformer))


def test_breaking_off_in_the_middle_of_a_load_leaves_the_model_as_it_was(folder: Path) -> None:
    denoiser = tiny_denoiser()
    before, weights = bits(denoiser), read_denoiser(denoiser, folder)
    weights.tensors["x_embedder.bias"] = torch.zeros(1)  # load_state_dict stops at it, with others in place
    with pytest.raises(RuntimeError):
        put_on([weights])
    assert same(before, bits(denoiser))
    assert not any(isinstance(module, Int8Linear) for module in denoiser.modules())


def test_saving_into_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("kept")
    told = r"save\(\): expected the name of a folder"
    with Stack(tiny_denoiser()).quantize("int8") as stack, pytest.raises(StackError, match=told):
        stack.save(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "kept" and os.listdir(tmp_path) == ["f"]


def test_an_adapter_of_ones_own_comes_along(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    save_lora(pipe.transformer, tmp_path, name="mine")
    stack = Stack(pipe, steps=6).quantize("int8", min_features=64)
    stack.distill(str(tmp_path / "mine.safetensors"), switchable=True)
    with stack:
        wanted = picture(stack, 6)
        stack.save(tmp_path / "saved")
    os.remove(tmp_path / "mine.safetensors")
    other = tiny_pipe()
    loaded = Stack.load(tmp_path / "saved", other).apply()
    assert [p.options()["adapter"] for p in loaded.passes] == [str(tmp_path / "saved" / "mine.safetensors")]
    assert torch.equal(picture(loaded, 6), wanted)
