"""What the README promises for one's own model, on a small saved FLUX and a small saved video pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from stack import StackError, load
from stack.cli import main

from ...docs.blocks import ROOT, blocks
from .build import SAVED

RECIPE = 'steps = 8\n[quantize]\nscheme = "int8-weight"\nmin_features = 32\n[cache]\nmethod = "svd"\ncount = 4\n'


def test_the_first_block_of_the_readme_runs_on_a_saved_pipeline(tmp_path: Path) -> None:
    """With the folder for the hub's name, on the CPU, in the precision that small linears take; not compiled."""
    SAVED["Flux"].make().save_pretrained(tmp_path)
    block = next(block for block in blocks(ROOT / "README.md") if "FluxPipeline" in block.code)
    code = block.code.replace("black-forest-labs/FLUX.1-dev", str(tmp_path)).replace('.to("cuda")', "")
    code = code.replace('quantize("fp8")', 'quantize("int8-weight", min_features=32)').replace(".compile()", "")
    code = code.replace('roof")', 'roof", height=64, width=64)')
    assert "height=64" in code and "cuda" not in code and "fp8" not in code and ".compile()" not in code
    names: dict[str, object] = {}
    exec(code, names)
    assert names["image"].size == (64, 64)  # type: ignore[attr-defined]
    assert isinstance(names["pipe"], diffusers.FluxPipeline) and not names["fast"].applied  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "options"), [("Flux", []), ("Wan", ["--frames", "5"])])
def test_a_comparison_of_own_prompts_and_arguments(name: str, options: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    SAVED[name].make().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "prompts.txt").write_text("a red ring\na blue star on white\n")
    call = ["--call", json.dumps({"guidance_scale": 3.5}), "--size", SAVED[name].size, "--no-compile", *options]
    files = ["--prompts-file", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, [tmp_path / "mine.toml", "--model", tmp_path / "model", *files, *call])])
    assert not end.value.code
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["prompts"] == ["a red ring", "a blue star on white"] and record["verdict"]
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["all"]["full_steps"] == 4 and rows["all"]["prompts_done"] == 2 and rows["quantize"]["psnr_db"] > 20


def test_a_lora_with_scales_of_norms_is_merged_whole(tmp_path: Path) -> None:
    SAVED["Flux"].make().save_pretrained(tmp_path / "model")
    plain = load(str(tmp_path / "model"), torch.float32)
    attention = plain.transformer.transformer_blocks[0].attn
    key, (out, width) = "transformer.transformer_blocks.0.attn", attention.to_q.weight.shape
    torch.manual_seed(1)
    file = {f"{key}.to_q.lora_A.weight": torch.randn(2, width), f"{key}.to_q.lora_B.weight": torch.randn(out, 2)}
    file[f"{key}.norm_q.weight"] = torch.full_like(attention.norm_q.weight, 3.0)
    save_file(file, tmp_path / "lora.safetensors")
    merged = load(str(tmp_path / "model"), torch.float32, lora=tmp_path / "lora.safetensors")
    own = merged.transformer.transformer_blocks[0].attn
    added = file[f"{key}.to_q.lora_B.weight"] @ file[f"{key}.to_q.lora_A.weight"]
    torch.testing.assert_close(own.to_q.weight, attention.to_q.weight + added, atol=1e-4, rtol=1e-4)
    assert (own.norm_q.weight == 3).all() and isinstance(own.to_q, torch.nn.Linear)
    file[f"{key}.to_q.lora_B.weight"][0, 0] = float("nan")
    save_file(file, tmp_path / "lora.safetensors")
    with pytest.raises(StackError, match="cannot load the LoRA"):
        load(str(tmp_path / "model"), torch.float32, lora=tmp_path / "lora.safetensors")
