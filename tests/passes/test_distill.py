from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stack import Stack, StackError
from stack.passes.distill import Distill

from ..conftest import picture, tiny_pipe
from ..lora import save_lora


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_fused_weights_are_the_sum_and_keys_stay(tmp_path: Path, prefix: str) -> None:
    pipe = tiny_pipe()
    updates = save_lora(pipe.transformer, tmp_path, prefix=prefix)
    before = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    stack = Stack(pipe).distill(str(tmp_path), scale=0.5).apply()
    after = pipe.transformer.state_dict()
    assert list(after) == list(before)
    changed = {name.removesuffix(".weight") for name in after if not torch.equal(after[name], before[name])}
    assert changed == set(updates)
    for name, update in updates.items():
        expected = before[f"{name}.weight"] + 0.5 * update
        torch.testing.assert_close(after[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert stack.report().summaries["distill"].startswith(f"{len(updates)} linears updated")
    stack.undo()
    assert all(torch.equal(pipe.transformer.state_dict()[name], before[name]) for name in before)


def test_a_card_brings_steps_shift_and_scale(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    updates = save_lora(pipe.transformer, tmp_path)
    card = tmp_path / "turbo.toml"
    card.write_text('weights = "pytorch_lora_weights.safetensors"\nscale = 0.25\nsteps = 6\nshift = 2.0\n')
    name = next(iter(updates))
    before = pipe.transformer.get_submodule(name).weight.clone()
    scheduler = pipe.scheduler
    stack = Stack(pipe).distill(str(card))
    assert stack.plan.facts_after.steps == 6
    stack("a green circle")
    assert len(stack.report().steps) == 6
    # sigma = 2 u / (1 + u) at u = 5/6
    assert stack.report().steps[1].sigma == pytest.approx(10 / 11, abs=1e-6)
    torch.testing.assert_close(pipe.transformer.get_submodule(name).weight, before + 0.25 * updates[name])
    stack.undo()
    assert pipe.scheduler is scheduler


def test_fuse_before_quantize_survives_rounding(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    save_lora(pipe.transformer, tmp_path)
    with Stack(pipe).distill(str(tmp_path)):
        wanted = picture(pipe)
    with Stack(pipe).quantize("int8", min_features=64).distill(str(tmp_path)) as stack:
        assert [p.stage for p in stack.plan.passes()] == ["distill", "quantize"]
        both = picture(pipe)
    with Stack(pipe).quantize("int8", min_features=64):
        quantized = picture(pipe)
    assert (both - wanted).norm() < 0.2 * (quantized - wanted).norm()


def test_a_file_that_fits_nothing_is_refused_before_anything_changes(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    save_file({"transformer.blocks.0.q.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "x.safetensors")
    before = picture(pipe)
    with pytest.raises(StackError, match=r"expected LoRA keys of its linears, found blocks\.0\.q"):
        Stack(pipe).distill(str(tmp_path)).apply()
    assert torch.equal(picture(pipe), before)


def test_unknown_adapters_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="unknown adapter 'turbo-9'"):
        Stack(tiny_pipe()).distill("turbo-9").explain()
    with pytest.raises(StackError, match="found 0"):
        Distill(str(tmp_path)).settings()
