"""Models that were quantized while they were loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel, QuantoConfig, TorchAoConfig

from stack import Stack, StackError
from stack.quant.backends import BACKENDS
from stack.quant.backends.base import LibraryLinear
from stack.quant.schemes import SCHEMES
from tests.conftest import tiny_denoiser


def refused(denoiser: Any, by: str, bits: int) -> None:
    stack = Stack(denoiser)
    assert (stack.facts.quantized_by, stack.facts.weight_bits) == (by, bits)
    with pytest.raises(StackError, match=f"already quantized by {by} to {bits} bits"):
        stack.quantize("int8").apply()
    assert Stack(denoiser).cache("svd").explain()  # what does not round still works


@pytest.mark.parametrize("library", ["torchao", "quanto"])
def test_loaded_by_diffusers(tmp_path: Path, library: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    tiny_denoiser().to(torch.bfloat16).save_pretrained(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig()) if library == "torchao" else QuantoConfig(weights_dtype="int8")
    model = FluxTransformer2DModel.from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.bfloat16)
    refused(model, library, 8)


@pytest.mark.parametrize(("scheme", "bits"), [("nf4", 4), ("int8", 8)])
def test_loaded_with_bitsandbytes(scheme: str, bits: int) -> None:
    """diffusers itself loads with bitsandbytes on GPUs alone, so what it makes is put together here."""
    denoiser = tiny_denoiser().to(torch.bfloat16)
    attention = denoiser.transformer_blocks[0].attn
    (made,) = BACKENDS["bitsandbytes"].convert([attention.to_q], SCHEMES[scheme])
    assert isinstance(made, LibraryLinear)
    attention.to_q = made.linear
    refused_by_module = Stack(denoiser).facts.quantized_by
    denoiser.register_to_config(quantization_config=BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8))
    refused(denoiser, "bitsandbytes", bits)
    assert refused_by_module == "bitsandbytes"


def test_a_plain_model_is_not_quantized() -> None:
    for dtype, bits in ((torch.float32, 32), (torch.bfloat16, 16)):
        facts = Stack(tiny_denoiser().to(dtype)).facts
        assert (facts.quantized_by, facts.weight_bits) == ("", bits)
