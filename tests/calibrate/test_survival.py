"""What rounding leaves of an update: the same shares as are found after the fact, and nothing changed by asking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stack import Stack, StackError
from stack.bounds import rounding_share
from stack.quant.formats import load, store
from stack.quant.schemes import SCHEMES

from ..conftest import tiny_denoiser, tiny_pipe
from ..lora import save_lora
from ..passes.test_adapter import torchao_pipe

SMALL = 0.003  # scale of the update: far below the rounding noise of the weights


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_lora(tiny_denoiser(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_small_update_survives_only_before_rounding(lora: Path, scheme: str) -> None:
    pipe = tiny_pipe()
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    fast = Stack(pipe).quantize(scheme, min_features=16).distill(str(lora), scale=SMALL)
    (found,) = fast.surviving_updates()
    assert not found.beside and found.packed == 0 and found.rounded_to == scheme
    assert found.merged is not None and found.merged < 0.5 < found.fused
    assert not fast.applied and all(torch.equal(before[n], t) for n, t in pipe.transformer.state_dict().items())
    text = str(found).splitlines()
    assert text[0].endswith(": fused before rounding") and f"is left ({found.worst[0]}: " in text[1]
    assert text[2].strip() == f"merged into {scheme} weights: {found.merged:.1%} would be left"


def test_the_share_is_that_of_each_linear_by_its_energy(lora: Path) -> None:
    pipe = tiny_pipe()
    updates = save_lora(tiny_denoiser(), lora)
    (found,) = Stack(pipe).quantize("int8", min_features=16).distill(str(lora), scale=SMALL).surviving_updates()
    energy, kept = 0.0, 0.0
    for path, update in updates.items():
        weight, delta = pipe.transformer.get_submodule(path).weight.detach(), SMALL * update
        plain, changed = (load(store(one, SCHEMES["int8"]), one.dtype) for one in (weight, weight + delta))
        energy += float(delta.square().sum())
        kept += float(rounding_share(plain, changed, delta) * delta.square().sum())
    assert found.fused == pytest.approx(kept / energy, rel=1e-4)


def test_without_quantization_the_weights_own_type_rounds(lora: Path) -> None:
    pipe = tiny_pipe()
    (found,) = Stack(pipe).distill(str(lora)).surviving_updates()
    assert (found.rounded_to, found.merged) == ("float32", None) and found.fused == pytest.approx(1, abs=1e-5)
    pipe.transformer.bfloat16()
    fast = Stack(pipe).distill(str(lora), scale=SMALL)
    (found,) = fast.surviving_updates()
    assert found.rounded_to == "bfloat16"
    fast.apply()  # which finds the same in hindsight
    told = [text for text in fast.report().warnings if "survived rounding to bfloat16" in text]
    assert found.fused < 0.9 and told[0].startswith(f"only {found.fused:.1%} of the update")


def test_beside_packed_weights_nothing_is_rounded(lora: Path) -> None:
    pipe = torchao_pipe()
    (found,) = Stack(pipe).distill(str(lora), scale=SMALL).surviving_updates()
    assert found.beside and found.packed > 0
    assert str(found).splitlines()[0].endswith("kept beside the weights: nothing of it is rounded")
    assert f"{found.packed} linears hold weights that are rounded already" in str(found)


def test_it_needs_an_adapter_that_is_not_on_the_model_yet(lora: Path) -> None:
    with pytest.raises(StackError, match=r"no adapter with weights here: expected .distill\(name\)"):
        Stack(tiny_pipe()).quantize("int8", min_features=16).surviving_updates()
    fast = Stack(tiny_pipe()).distill(str(lora)).apply()
    with pytest.raises(StackError, match=r"undo\(\) the stack first"):
        fast.surviving_updates()
    fast.undo()
    assert len(fast.surviving_updates()) == 1
