"""Random LoRAs in the layouts that few-step adapters are published in, and the updates that they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# What diffusers calls the modules of Wan and of MiniMax-H3, and what their authors call them.
WAN = {
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o", "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
}  # fmt: skip
UNET = (
    r"attn\d\.to_(q|k|v|out\.0)", r"proj_(in|out)", r"ff\.net\.(0\.proj|2)", r"resnets\.\d\.conv[12]", "conv_shortcut",
    r"samplers\.0\.conv", "time_emb_proj",
)  # fmt: skip
ATTENTION = (r"attn\d?\.to_(q|k|v)", r"attn\d?\.to_out\.0")


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        targets: what the paths of the layers end in, as patterns.
        name: path of a layer in diffusers to its name in the file.
        down, up: how its keys end.
        alpha: alpha over rank, written as a tensor of each layer; 0 for none.
        header: alpha over rank, written into the file's header; 0 for none.
        fused: whether q, k and v of an attention are one layer of the file.
        bias: how keys of an update of the bias end; "" for none.
    """

    targets: tuple[str, ...] = ATTENTION
    name: Callable[[str], str] = lambda path: f"transformer.{path}"
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    alpha: float = 0.0
    header: float = 0.0
    fused: bool = False
    bias: str = ""


def _wan(path: str) -> str:
    block, number, rest = path.split(".", 2)
    return f"diffusion_model.{block}.{number}.{WAN[rest]}"


def _minimax(path: str) -> str:
    return path.replace("transformer_blocks.", "blocks.").replace("to_q", "qkv_proj").replace("to_out.0", "out_proj")


KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
FORMATS = {
    "peft": Format(),
    "kohya": Format(UNET, lambda path: "lora_unet_" + path.replace(".", "_"), **KOHYA, alpha=0.5),
    "qwen": Format((*ATTENTION, r"add_(q|k|v)_proj"), lambda path: path, **KOHYA, alpha=0.5),
    "wan": Format(tuple(map(re.escape, WAN)), _wan, **KOHYA, alpha=0.5),
    "wan-bias": Format(tuple(map(re.escape, WAN)), _wan, **KOHYA, bias=".diff_b"),
    "ltx2": Format(ATTENTION, lambda path: f"diffusion_model.{path}"),
    "minimax": Format((r"transformer_blocks\.\d\.attn\.to_(q|k|v|out\.0)",), _minimax, header=0.25, fused=True),
}


def write(form: Format, denoiser: Any, file: Path, rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a random LoRA for a denoiser in this layout.

    Returns:
        What it adds to which parameter.
    """
    random, state, added = torch.Generator().manual_seed(seed), {}, {}
    downs: dict[str, torch.Tensor] = {}
    for path, layer in denoiser.named_modules():
        if not (isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and _ends(path, form.targets)):
            continue
        shape = layer.weight.shape
        name = form.name(path) if not form.fused else re.sub(r"to_[kv]$", "qkv_proj", form.name(path))
        if name not in downs:
            downs[name] = torch.randn(rank, *shape[1:], generator=random) / shape[1:].numel() ** 0.5
        up = 0.3 * torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=random)
        state[name + form.down] = downs[name]
        state[name + form.up] = torch.cat([state[name + form.up], up]) if name + form.up in state else up
        if form.alpha:
            state[name + ".alpha"] = torch.tensor(form.alpha * rank)
        scaling = form.alpha or form.header or 1.0
        added[f"{path}.weight"] = scaling * (up.flatten(1) @ downs[name].flatten(1)).view(shape)
        if form.bias and layer.bias is not None:
            state[name + form.bias] = 0.1 * torch.randn(shape[0], generator=random)
            added[f"{path}.bias"] = state[name + form.bias]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, {"alpha": str(form.header * rank)} if form.header else None)
    return added


def _ends(path: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(rf"(^|\.|_|up|down){pattern}$", path) for pattern in patterns)


def close(
    given: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], added: Mapping[str, torch.Tensor]
) -> None:
    """Asserts that exactly these parameters have changed, each by what was added."""
    assert {name for name in before if not torch.equal(given[name], before[name])} == set(added)
    for name, update in added.items():
        torch.testing.assert_close(given[name], before[name] + update, atol=2e-5, rtol=1e-4)
