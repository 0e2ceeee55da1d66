"""A LoRA that is cut short, or is for other blocks, is refused by its first key; one of any known layout is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors.torch import save_file

from stack import StackError, load
from stack.distill.whole import converted_whole
from stack.models.denoiser import denoiser_of

from ...conftest import tiny_pipe
from .build import SAVED

State = dict[str, torch.Tensor]
DIFFUSERS, KOHYA = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
ATTENTION = "transformer.transformer_blocks.0.attn"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small saved FLUX."""
    folder = tmp_path_factory.mktemp("flux")
    SAVED["Flux"].make().save_pretrained(folder)
    return folder


def pair(stem: str, layer: Any, names: tuple[str, str] = DIFFUSERS, rank: int = 2) -> State:
    """Both factors of an update of one linear."""
    generator = torch.Generator().manual_seed(len(stem))
    down, up = (
        torch.randn(*shape, generator=generator) for shape in ((rank, layer.in_features), (layer.out_features, rank))
    )
    return {stem + names[0]: down, stem + names[1]: up}


def saved(state: State, folder: Path) -> Path:
    path = folder / "lora.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def layers(model: Path) -> Any:
    return load(str(model), torch.float32).transformer.transformer_blocks[0]


def of_diffusers(block: Any) -> State:
    attention = block.attn
    named = {"to_q": attention.to_q, "to_k": attention.to_k, "to_v": attention.to_v, "to_out.0": attention.to_out[0]}
    return {key: tensor for name, one in named.items() for key, tensor in pair(f"{ATTENTION}.{name}", one).items()}


def of_kohya(block: Any) -> State:
    made = pair("lora_unet_double_blocks_0_img_attn_proj", block.attn.to_out[0], KOHYA)
    wide = torch.nn.Linear(block.attn.to_q.in_features, 3 * block.attn.to_q.out_features)
    return made | pair("lora_unet_double_blocks_0_img_attn_qkv", wide, KOHYA)


def of_xlabs(block: Any) -> State:
    names = (".down.weight", ".up.weight")
    made = pair("double_blocks.0.processor.proj_lora1", block.attn.to_out[0], names)
    wide = torch.nn.Linear(block.attn.to_q.in_features, 3 * block.attn.to_q.out_features)
    return made | pair("double_blocks.0.processor.qkv_lora1", wide, names)


LAYOUTS = {"diffusers": of_diffusers, "kohya": of_kohya, "xlabs": of_xlabs}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_lora_of_each_layout_is_merged(model: Path, layout: str, tmp_path: Path) -> None:
    block = layers(model)
    state = LAYOUTS[layout](block)
    merged = layers_with(model, saved(state, tmp_path))
    down, up = next((state[key], state[other]) for key, other in pairs(state) if "out" in key or "proj" in key)
    added = merged.attn.to_out[0].weight - block.attn.to_out[0].weight
    torch.testing.assert_close(added, up @ down, atol=1e-4, rtol=1e-4)
    assert not torch.equal(merged.attn.to_q.weight, block.attn.to_q.weight)


def layers_with(model: Path, lora: Path) -> Any:
    return load(str(model), torch.float32, lora=lora).transformer.transformer_blocks[0]


def pairs(state: State) -> list[tuple[str, str]]:
    swaps = {"lora_A": "lora_B", "lora_down": "lora_up", ".down.": ".up."}
    return [(key, key.replace(a, b)) for key in state for a, b in swaps.items() if a in key]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("half", [0, 1])
def test_one_factor_of_each_pair_is_refused(model: Path, layout: str, half: int, tmp_path: Path) -> None:
    state = LAYOUTS[layout](layers(model))
    kept = [names[half] for names in pairs(state)]
    path = saved({key: state[key] for key in kept}, tmp_path)
    with pytest.raises(StackError) as caught:
        load(str(model), torch.float32, lora=path)
    first = sorted(kept)[0]
    assert f"is not whole: it has {len(kept)} factors alone, first {first} without " in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pair_of_several_that_is_cut_is_refused(model: Path, layout: str, tmp_path: Path) -> None:
    state = LAYOUTS[layout](layers(model))
    down, up = pairs(state)[-1]
    del state[up]
    with pytest.raises(StackError, match=f"not whole: it has 1 factor alone, first {down} without {up}; get the file"):
        load(str(model), torch.float32, lora=saved(state, tmp_path))


ELSEWHERE = {
    "diffusers": (f"{ATTENTION}.to_q".replace("blocks.0", "blocks.57"), DIFFUSERS),
    "diffusers, no such part": ("prior.transformer_blocks.0.attn.to_q", DIFFUSERS),
    "diffusers, no prefix": ("transformer_blocks.0.attn.to_q", DIFFUSERS),
    "diffusers, a text encoder that is not there": ("text_encoder_3.block.0.layer.0.SelfAttention.q", DIFFUSERS),
    "kohya": ("lora_unet_double_blocks_57_img_attn_proj", KOHYA),
    "kohya, a block of larger models": ("lora_unet_double_blocks_9_img_attn_proj", KOHYA),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_keys_of_blocks_that_are_not_there_are_refused(model: Path, kind: str, tmp_path: Path) -> None:
    block = layers(model)
    stem, names = ELSEWHERE[kind]
    state = LAYOUTS[kind.split(",")[0]](block)
    other = pair(stem, block.attn.to_q, names)
    with pytest.raises(StackError) as caught:
        load(str(model), torch.float32, lora=saved(state | other, tmp_path))
    told = str(caught.value)
    assert "does not fit this FluxPipeline: no place for 1 update of it, first " in told and "\n" not in told
    assert stem in told or "transformer_blocks.9.attn.to_out.0" in told


def test_an_update_of_zero_may_be_left_out() -> None:
    state = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.zeros(3, 2), "a.alpha": torch.tensor(2.0)}
    assert converted_whole("x", "Pipe", state, lambda given: {}) == {}
    with pytest.raises(StackError, match=r"does not fit this Pipe: no place for 1 update of it, first a\.lora_A"):
        converted_whole("x", "Pipe", {**state, "a.lora_B.weight": torch.ones(3, 2)}, lambda given: {})


def test_a_conversion_that_splits_joins_and_scales_drops_nothing() -> None:
    state = {f"{name}.lora_{part}.weight": torch.ones(4, 4) for name in "abc" for part in ("down", "up")}
    state |= {"a.alpha": torch.tensor(16.0)}

    def convert(given: Any) -> State:
        a, b, c = (given[f"{name}.lora_down.weight"] for name in "abc")
        return {"x.lora_A.weight": torch.cat([a * given["a.alpha"], b, c * 0 + c])[:, :2], "ups": torch.zeros(1)}

    assert [*converted_whole("x", "Pipe", state, convert)] == ["x.lora_A.weight", "ups"]


@pytest.mark.parametrize("family", [name for name, one in SAVED.items() if name != "Flux"])
def test_a_whole_lora_is_never_refused(family: str, tmp_path: Path) -> None:
    """In diffusers' own layout, on every family whose pipeline takes a LoRA."""
    pipe = SAVED[family].make()
    if not isinstance(pipe, LoraBaseMixin):
        pytest.skip(f"{type(pipe).__name__} takes no LoRA")
    pipe.save_pretrained(tmp_path / "model")
    denoiser = denoiser_of(pipe)
    part = next(name for name, component in pipe.components.items() if component is denoiser)
    path, layer = first_query(denoiser)
    state = pair(f"{part}.{path}", layer)
    merged = load(str(tmp_path / "model"), torch.float32, lora=saved(state, tmp_path))
    added = denoiser_of(merged).get_submodule(path).weight - layer.weight
    down, up = state.values()
    torch.testing.assert_close(added, up @ down, atol=1e-3, rtol=1e-3)
    wrong = state | pair(f"{part}.{path}_none", layer)
    with pytest.raises(StackError, match="no place for 1 update of it"):
        load(str(tmp_path / "model"), torch.float32, lora=saved(wrong, tmp_path))


def test_a_kohya_lora_of_a_unet_is_read_whole(tmp_path: Path) -> None:
    pipe = SAVED["StableDiffusionXL"].make()
    pipe.save_pretrained(tmp_path / "model")
    path, layer = first_query(pipe.unet)
    words, text = next((p, m) for p, m in pipe.text_encoder.named_modules() if p.endswith("out_proj"))
    stems = {f"lora_unet_{path}".replace(".", "_"): layer, f"lora_te1_{words}".replace(".", "_"): text}
    state = {key: tensor for stem, one in stems.items() for key, tensor in pair(stem, one, KOHYA).items()}
    state |= {f"{stem}.alpha": torch.tensor(1.0) for stem in stems}
    merged = load(str(tmp_path / "model"), torch.float32, lora=saved(state, tmp_path))
    (down, up), (text_down, text_up) = [[state[stem + name] for name in KOHYA] for stem in stems]
    added = merged.unet.get_submodule(path).weight - layer.weight
    torch.testing.assert_close(added, up @ down / 2, atol=1e-3, rtol=1e-3)
    added = merged.text_encoder.get_submodule(words).weight - text.weight
    torch.testing.assert_close(added, text_up @ text_down / 2, atol=1e-3, rtol=1e-3)
    wrong = state | pair(f"lora_unet_{path}".replace(".", "_").replace("blocks_0", "blocks_7"), layer, KOHYA)
    with pytest.raises(StackError, match="does not fit this StableDiffusionXLPipeline: no place for 1 update of it"):
        load(str(tmp_path / "model"), torch.float32, lora=saved(wrong, tmp_path))


def first_query(denoiser: Any) -> tuple[str, Any]:
    """The first linear of queries and its path."""
    linears = ((path, one) for path, one in denoiser.named_modules() if isinstance(one, torch.nn.Linear))
    return next((path, one) for path, one in linears if path.endswith("to_q"))


def test_a_shipped_kind_of_pipeline_is_as_strict(tmp_path: Path) -> None:
    tiny_pipe().save_pretrained(tmp_path / "model")
    block = tiny_pipe().transformer.transformer_blocks[0]
    state = of_diffusers(block)
    assert load(str(tmp_path / "model"), torch.float32, lora=saved(state, tmp_path)) is not None
    elsewhere = pair(f"{ATTENTION}.to_q".replace("blocks.0", "blocks.8"), block.attn.to_q)
    for wrong, told in (
        (
            state | elsewhere,
            "no place for 1 update of it, first transformer.transformer_blocks.8.attn.to_q.lora_A.weight",
        ),
        ({key: state[key] for key in [*state][:-1]}, "is not whole: it has 1 factor alone"),
        (
            state | pair("nowhere.to_q", block.attn.to_q),
            "no place for 1 update of it, first nowhere.to_q.lora_A.weight",
        ),
    ):
        with pytest.raises(StackError, match=told):
            load(str(tmp_path / "model"), torch.float32, lora=saved(wrong, tmp_path))
