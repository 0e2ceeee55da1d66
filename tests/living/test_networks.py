"""Networks beside a denoiser: a control net for a part of the steps, an image adapter, LoRAs swapped in place."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from stack import Stack, StackError

from ..lora import save_lora
from ..pipelines.build import Tiny, controlnet, flux, one_thread
from .features import STACKS, STEPS

SPAN = {"control_guidance_start": 0.3, "control_guidance_end": 0.7}  # of 14 steps: 5 to 8
CACHES = ["svd", "first-block"]


def kinds(stack: Stack) -> list[str]:
    return [entry.kind for entry in stack._target.journal.entries]


@pytest.mark.parametrize("name", STACKS)
def test_a_control_that_begins_and_ends_in_mid_run_has_full_steps_where_it_does(name: str) -> None:
    tiny = controlnet(torch.float32)
    with one_thread():
        plain, throughout = tiny.call(**SPAN), tiny.call()
        assert not torch.equal(plain, throughout)
        stack = STACKS[name](tiny.pipe)
        tiny.call(stack, **SPAN)
        made, said = kinds(stack), stack.report().warnings
        assert torch.equal(tiny.call(stack.undo().pipe, **SPAN), plain)
    if name == "quantize":
        assert made == ["full"] * STEPS
        return
    assert made[5] == made[9] == "full" and len(set(made)) > 1
    dropped = "cached state dropped at step {}: it was made under other conditioning (controlnet_block_samples, "
    assert [each[: len(dropped)] for each in said if "dropped" in each] == [
        dropped.format(step) + "c" * (2 - len(str(step))) for step in (5, 9)
    ]


def drawn(seed: int) -> list[torch.Tensor]:
    return [torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(seed))]


IMAGE = {"ip_adapter_image_embeds": drawn(8), "negative_ip_adapter_image_embeds": drawn(9)}


def with_image(pipe: Any) -> None:
    """What `load_ip_adapter` does to a FLUX, of random weights."""
    torch.manual_seed(9)
    for block in pipe.transformer.transformer_blocks:
        block.attn.processor = FluxIPAdapterAttnProcessor(64, 24, num_tokens=(3,), scale=[1.0]).eval()
    projection = ImageProjection(image_embed_dim=24, cross_attention_dim=24, num_image_text_embeds=3)
    pipe.transformer.encoder_hid_proj = MultiIPAdapterImageProjection([projection]).eval()


@pytest.mark.parametrize("name", STACKS)
def test_an_image_adapter_before_a_stack_and_after_it(name: str) -> None:
    made, noted = [], []
    with one_thread():
        bare = flux(torch.float32)
        without = bare.call(STACKS[name](bare.pipe))
        for later in (False, True):
            tiny = flux(torch.float32)
            stack = STACKS[name](tiny.pipe)
            for act in (stack.apply, partial(with_image, tiny.pipe))[:: 1 if later else -1]:
                act()
            made.append(tiny.call(stack, **IMAGE))
            noted.append(any("attention processors" in each for each in stack.report().warnings))
            plain = flux(torch.float32)
            with_image(plain.pipe)
            assert torch.equal(tiny.call(stack.undo().pipe, **IMAGE), plain.call(**IMAGE))
    assert torch.equal(*made) and not torch.equal(made[0], without)
    assert noted == [False, True]


def test_sparse_attention_looks_through_the_layers_of_an_image_adapter() -> None:
    tiny = flux(torch.float32)
    with_image(tiny.pipe)
    with one_thread():
        plain = tiny.call(**IMAGE)
        stack = Stack(tiny.pipe, steps=STEPS).sparse_attn(0.5, even_if_slower=True)
        assert torch.equal(tiny.call(stack, **IMAGE), plain), "15 tokens are too few for a block to leave out"
    (said,) = stack.report().warnings
    assert said.startswith(f"0 of {3 * STEPS} attention calls sparse") and "15 image tokens make 0 blocks" in said


@pytest.mark.parametrize("name", CACHES)
def test_another_image_in_mid_run_is_seen(name: str) -> None:
    tiny = flux(torch.float32)
    with_image(tiny.pipe)

    def halve(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            pipe.transformer.transformer_blocks[0].attn.processor.scale[0] = 0.5
        return {}

    with one_thread():
        stack = STACKS[name](tiny.pipe)
        tiny.call(stack, **IMAGE, callback_on_step_end=halve)
    assert kinds(stack)[5] == "full"
    assert any("dropped at step 5: it was made under other attention" in each for each in stack.report().warnings)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of them, of rank 4 and 6."""
    folder = tmp_path_factory.mktemp("loras")
    for name, rank in (("one", 4), ("two", 6)):
        denoiser = flux(torch.float32).pipe.transformer
        save_lora(denoiser, folder, rank=rank, name=name, seed=rank, targets=("attn.to_q", "proj_mlp"))
    return folder


def load(tiny: Tiny, folder: Path, name: str, **more: Any) -> None:
    tiny.pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name="style", **more)


def swappable() -> Tiny:
    tiny = flux(torch.float32)
    tiny.pipe.enable_lora_hotswap(target_rank=8)
    return tiny


@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CACHES)
def test_a_swapped_lora_is_that_of_the_next_request(name: str, later: bool, loras: Path) -> None:
    fresh = {}
    with one_thread():
        for lora in ("one", "two"):
            tiny = swappable()
            load(tiny, loras, lora)
            fresh[lora] = tiny.call(STACKS[name](tiny.pipe)), tiny.call(Stack.of(tiny.pipe).undo().pipe)
        tiny = swappable()
        stack = STACKS[name](tiny.pipe)
        for act in (stack.apply, partial(load, tiny, loras, "one"))[:: 1 if later else -1]:
            act()
        assert torch.equal(tiny.call(stack), fresh["one"][0])
        load(tiny, loras, "two", hotswap=True)
        assert torch.equal(tiny.call(stack), fresh["two"][0]) and not torch.equal(fresh["one"][0], fresh["two"][0])
        assert torch.equal(tiny.call(stack.undo().pipe), fresh["two"][1])


@pytest.mark.parametrize("name", CACHES)
def test_a_swap_in_mid_run_is_seen(name: str, loras: Path) -> None:
    """It is written through `.data`, which torch does not count."""
    tiny = swappable()
    load(tiny, loras, "one")

    def swap(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 1:
            load(tiny, loras, "two", hotswap=True)
        return {}

    with one_thread():
        stack = STACKS[name](tiny.pipe)
        tiny.call(stack, callback_on_step_end=swap)
    assert kinds(stack)[1] != "full" and kinds(stack)[2] == "full"
    assert any("dropped at step 2: it was made under other weights" in each for each in stack.report().warnings)


def test_a_swapped_lora_is_not_compiled_anew(loras: Path) -> None:
    """With the compiler's front end alone, which is what counts graphs."""
    torch._dynamo.reset()
    with one_thread(), mock.patch("torch.compile", partial(torch.compile, backend="eager")):
        made, graphs = [], []
        tiny = swappable()
        load(tiny, loras, "one")
        stack = Stack(tiny.pipe, steps=STEPS).compile().cache("svd")
        for lora in ("one", "two"):
            if lora == "two":
                load(tiny, loras, lora, hotswap=True)
            made.append(tiny.call(stack))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            other = swappable()
            load(other, loras, lora)
            assert torch.equal(made[-1], other.call(Stack(other.pipe, steps=STEPS).cache("svd")))
    assert graphs[0] == graphs[1] > 0 and not torch.equal(*made)


def test_a_lora_is_not_loaded_onto_rounded_weights(loras: Path) -> None:
    tiny = swappable()
    with one_thread():
        plain = tiny.call()
        stack = STACKS["quantize"](tiny.pipe).apply()
        with pytest.raises(StackError, match=r"load_lora_weights\(\) on a model that carries quantize: .*switchable"):
            load(tiny, loras, "one")
        assert torch.equal(tiny.call(stack.undo().pipe), plain)
        load(tiny, loras, "one")
        with pytest.raises(StackError, match="rule unmerged-lora"):
            STACKS["quantize"](tiny.pipe).apply()
