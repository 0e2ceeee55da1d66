"""Fused in fp32: against peft, with biases, into coarse and packed weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from stack import StackError
from stack.core.installer import Installer
from stack.distill.fuse import fuse
from stack.distill.lora import LowRank, read_lora, updates
from stack.distill.side import SideLinear, put_beside

from ..conftest import tiny_denoiser, tiny_pipe
from ..lora import save_lora

FILE = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_the_weights_are_those_of_diffusers_and_peft(tmp_path: Path, alpha: float | None) -> None:
    save_lora(tiny_denoiser(), tmp_path, alpha=alpha)
    oracle = tiny_denoiser()
    state, alphas = FluxPipeline.lora_state_dict(str(tmp_path), return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, oracle, adapter_name="x")
    oracle.fuse_lora()
    oracle.unload_lora()
    mine = tiny_denoiser()
    fuse(mine, updates(read_lora(tmp_path / FILE), mine), 1.0, Installer())
    for name, weight in oracle.state_dict().items():
        torch.testing.assert_close(mine.get_parameter(name), weight, rtol=1e-5, atol=1e-6)


def linear(dtype: torch.dtype = torch.float32, size: float = 0.02) -> nn.Module:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(64, 32))
    root[0].weight.data.normal_(std=size)
    return root.to(dtype)


def low_rank(relative: float, weight: torch.Tensor, rank: int = 8) -> LowRank:
    torch.manual_seed(1)
    down, up = torch.randn(rank, 64), torch.randn(32, rank)
    size = float(weight.detach().float().norm() / (up @ down).norm())
    return LowRank(down, up * relative * size, 1.0)


def test_a_bias_is_added_too_and_comes_back() -> None:
    root = linear()
    before = {k: v.clone() for k, v in root.state_dict().items()}
    update, install = LowRank(torch.ones(1, 64), torch.ones(32, 1), 0.5, torch.full((32,), 3.0)), Installer()
    assert fuse(root, {"0": update}, 2.0, install).linears == 1
    torch.testing.assert_close(root[0].weight, before["0.weight"] + 1.0)
    torch.testing.assert_close(root[0].bias, before["0.bias"] + 3.0)
    install.rollback()
    assert all(torch.equal(root.state_dict()[k], before[k]) for k in before)
    put_beside(root, {"0": update}, 2.0, install)
    torch.testing.assert_close(root(torch.ones(5, 64)), nn.Linear.forward(root[0].base, torch.ones(5, 64)) + 64 + 3)


def test_an_update_is_multiplied_where_the_weight_is(monkeypatch: pytest.MonkeyPatch) -> None:
    root, devices = linear(), []
    update, delta = low_rank(0.1, root[0].weight), LowRank.delta
    assert update.delta(torch.device("meta")).device.type == "meta"
    assert torch.equal(update.delta(torch.device("cpu")), update.up @ update.down * update.scaling)
    monkeypatch.setattr(LowRank, "delta", lambda self, device=None: devices.append(device) or delta(self, device))
    fuse(root, {"0": update}, 1.0, Installer())
    assert devices == [root[0].weight.device]


@pytest.mark.parametrize("relative", [0.01, 0.1])
def test_bf16_weights_are_rounded_once_from_fp32(relative: float) -> None:
    root = linear(torch.bfloat16)
    before, update = root[0].weight.data.clone(), low_rank(relative, root[0].weight)
    fused = fuse(root, {"0": update}, 1.0, Installer())
    assert torch.equal(root[0].weight, (before.float() + update.delta()).bfloat16())
    assert fused.dtype == "bfloat16" and fused.share == pytest.approx(1, abs=0.05)


def test_what_bf16_loses_is_told_and_what_fp8_would_lose_is_refused() -> None:
    root = linear(torch.bfloat16)
    assert fuse(root, {"0": low_rank(3e-4, root[0].weight)}, 1.0, Installer()).share < 0.3
    coarse = linear(torch.float8_e4m3fn, size=0.2)
    before = coarse[0].weight.data.clone()
    with pytest.raises(StackError, match=r"only \d+\.\d% of the update would survive rounding to float8_e4m3fn"):
        fuse(coarse, {"0": low_rank(0.005, coarse[0].weight)}, 1.0, Installer())
    assert torch.equal(coarse[0].weight.float(), before.float())
    assert fuse(coarse, {"0": low_rank(0.5, coarse[0].weight)}, 1.0, Installer()).share > 0.97


def test_packed_weights_are_refused_with_the_share_that_would_survive() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    root = linear()
    small, large = low_rank(0.003, root[0].weight), low_rank(0.03, root[0].weight)
    quantize_(root, Int8WeightOnlyConfig(set_inductor_config=False))
    for update, said in ((small, r"so that \d\.\d% would survive"), (large, r"so that (99|100)\.\d% would survive")):
        with pytest.raises(StackError, match=said) as error:
            fuse(root, {"0": update}, 1.0, Installer())
        assert "keep it beside the weights (switchable=True)" in str(error.value)
    install, x = Installer(), torch.randn(3, 64)
    base = root(x)
    put_beside(root, {"0": large}, 1.0, install)
    torch.testing.assert_close(root(x), base + x @ large.delta().T, rtol=1e-4, atol=1e-4)
    install.rollback()
    assert torch.equal(root(x), base)


def test_a_branch_at_scale_0_is_the_base_bit_for_bit() -> None:
    root, x = linear(), torch.randn(7, 64)
    side = SideLinear(root[0], low_rank(0.5, root[0].weight), 0.0, root[0].weight)
    assert torch.equal(side(x), root[0](x))
    assert set(side.state_dict()) == {"base.weight", "base.bias"}
    half = SideLinear(root[0], low_rank(0.5, root[0].weight), 0.5, root[0].weight)
    torch.testing.assert_close(half(x), root[0](x) + 0.5 * x @ low_rank(0.5, root[0].weight).delta().T)


def test_keys_of_other_tools_go_through_diffusers(tmp_path: Path) -> None:
    from stack.distill.load import in_diffusers_layout

    pipe = tiny_pipe()
    save_lora(pipe.transformer, tmp_path, targets=("transformer_blocks.0.attn.to_q", "proj_mlp"))
    state = load_file(tmp_path / FILE)
    xlabs = {
        "double_blocks.0.processor.proj_lora1.down.weight": torch.randn(4, 128),
        "double_blocks.0.processor.proj_lora1.up.weight": torch.randn(128, 4),
    }
    save_file(xlabs, tmp_path / "xlabs.safetensors")
    file = in_diffusers_layout(
        read_lora(tmp_path / "xlabs.safetensors"), tmp_path / "xlabs.safetensors", type(pipe), pipe.transformer
    )
    (update,) = updates(file, pipe.transformer).values()
    assert torch.equal(update.down, xlabs["double_blocks.0.processor.proj_lora1.down.weight"])
    assert list(updates(file, pipe.transformer)) == ["transformer_blocks.0.attn.to_out.0"]
    assert (
        in_diffusers_layout(read_lora(tmp_path / FILE), tmp_path / FILE, type(pipe), pipe.transformer).state.keys()
        == state.keys()
    )
    with pytest.raises(StackError, match="other layouts are read for a diffusers pipeline"):
        in_diffusers_layout(
            read_lora(tmp_path / "xlabs.safetensors"), tmp_path / "xlabs.safetensors", None, pipe.transformer
        )
