"""Recipes for real models, planned from their configurations: sizes against published ones, bytes against real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.core.facts import Facts, assumed_machine
from stack.measure.flops import counting
from stack.measure.shape_work import work_at
from stack.models.derive.wiring import wiring_of
from stack.quant.planned import planned_weights
from stack.quant.quantize import Quantize
from stack.recipe import Recipe, list_recipes, load_recipe, parse_recipe
from stack.reference.published import Published, published, published_models
from stack.reference.recipe_page import page, plans
from stack.reference.saved_config import from_folder
from stack.reference.unloaded import Unloaded, savings, unloaded
from stack.reference.unloaded_words import asked, gigabytes, told

from ..conftest import PROMPT, tiny_denoiser, tiny_pipe

ROOT = Path(__file__).parents[2]
WAN22 = "Wan2.2-T2V-A14B"
H100 = assumed_machine("h100")
MODELS = published_models()
REAL = [recipe for recipe in list_recipes() if recipe.model in MODELS]
# Billions of parameters of one denoiser, as papers and model cards give them.
BILLIONS = {
    "FLUX.1-dev": 11.9, "FLUX.1-schnell": 11.9, "FLUX.2-dev": 32, "FLUX.2-klein-4B": 3.9, "FLUX.2-klein-9B": 9.0,
    "Qwen-Image": 20.4, "Wan2.1-T2V-14B-Diffusers": 14.3, "Wan2.2-T2V-A14B-Diffusers": 14.3, "HunyuanVideo": 12.8,
    "HunyuanVideo-1.5-Diffusers-720p_t2v": 8.3, "LTX-Video": 1.9, "Z-Image-Turbo": 6.15, "Chroma1-HD": 8.9,
    "stable-diffusion-3.5-large": 8.1, "CogVideoX-5b": 5.57, "PixArt-Sigma-XL-2-1024-MS": 0.61,
    "stable-diffusion-xl-base-1.0": 2.57,
}  # fmt: skip


def of(stages: dict[str, Any], steps: int = 14) -> Recipe:
    return parse_recipe({"steps": steps, **stages}, "x")


@pytest.fixture(scope="module")
def planned() -> dict[str, Unloaded]:
    return {recipe.name: found for recipe, found in plans()}


@pytest.mark.parametrize("name", BILLIONS)
def test_a_model_has_as_many_parameters_as_published(name: str) -> None:
    model = next(model for repo, model in MODELS.items() if repo.endswith(f"/{name}"))
    denoiser = model.new_denoiser()
    assert {p.device.type for p in denoiser.parameters()} == {"meta"}
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    assert count == pytest.approx(BILLIONS[name] * 1e9, rel=0.03)
    assert count == pytest.approx(model.billions * 1e9, rel=0.03)


def test_every_published_model_is_checked_above() -> None:
    assert {repo.partition("/")[2] for repo in MODELS} == BILLIONS.keys() and len(REAL) >= 15


@pytest.mark.parametrize("recipe", REAL, ids=lambda recipe: recipe.name)
def test_every_recipe_is_planned_and_says_its_bytes(recipe: Recipe, planned: dict[str, Unloaded]) -> None:
    found = planned[recipe.name]
    text = told(found)
    assert not any(finding.fatal for finding in found.plan.findings)
    assert [p.stage for p in found.plan.passes() if p.stage in recipe.stages] == list(recipe.stages)
    assert gigabytes(found.bytes_before) in text and gigabytes(found.bytes_after) in text
    assert 0.49 < found.bytes_after / found.bytes_before < 0.68, "8-bit linears, the others as they are"
    assert ("cache" in recipe.stages) == (found.state_bytes > 0)
    assert found.state_bytes == 0 or gigabytes(found.state_bytes) in text
    for reason in found.plan.facts.lacks.values():
        assert reason in text
    assert found.work is None or f"all together {savings(found).together:.2f}x" in text


@pytest.mark.parametrize("recipe", REAL, ids=lambda recipe: recipe.name)
def test_a_recipe_says_in_its_header_what_was_measured(recipe: Recipe) -> None:
    first, second, *rest = (ROOT / "recipes" / f"{recipe.name}.toml").read_text().splitlines()
    assert "Measured on this model: nothing so far" in first and second.startswith("# Not measured: all of it.")
    card = recipe.stages.get("distill", {}).get("adapter")
    assert card is None or f"adapters/{card}.toml" in rest[0]


def test_the_page_is_what_the_command_writes(planned: dict[str, Unloaded]) -> None:
    assert (ROOT / "docs" / "recipes.md").read_text() == page([(recipe, planned[recipe.name]) for recipe in REAL])


# ---- figures


def test_the_work_of_flux_is_that_of_papers() -> None:
    """Papers on caches (arXiv 2503.06923) count 3,719.5 TFLOP for 50 steps of FLUX.1-dev at 1024 x 1024."""
    model = published("black-forest-labs/FLUX.1-dev")
    found = unloaded(of({}), model, H100)
    assert found.work is not None
    assert 2 * 50 * found.work.total.step() == pytest.approx(3719.5e12, rel=0.01)


@pytest.mark.parametrize("tokens", [(64, 5), (144, 77)])
def test_work_is_that_of_a_counted_call(tokens: tuple[int, int]) -> None:
    image, text = tokens
    denoiser = tiny_denoiser(double=3, single=4)
    config, wiring = denoiser.config, wiring_of(denoiser)
    with torch.no_grad(), counting(denoiser, wiring.blocks(denoiser)) as counted:
        denoiser(
            hidden_states=torch.randn(1, image, config["in_channels"]),
            encoder_hidden_states=torch.randn(1, text, config["joint_attention_dim"]),
            pooled_projections=torch.randn(1, config["pooled_projection_dim"]),
            timestep=torch.full((1,), 0.5),
            img_ids=torch.zeros(image, 3),
            txt_ids=torch.zeros(text, 3),
        )
        known = counted()
    inferred = work_at(denoiser, wiring, image, text).total
    assert inferred.linears == pytest.approx(known.linears, rel=1e-6)
    assert inferred.attention == pytest.approx(known.attention, rel=1e-6)
    assert inferred.rest == pytest.approx(known.rest, rel=1e-6)


# What the features of a cache grow with: tokens and width of one stream, those of every cached module, or the latent,
# in fp32 or as the model computes. What a corrector keeps are latents in fp32.
GROWS = {
    "svd": "stream",
    "reuse": "stream",
    "fora": "modules",
    "taylorseer": "modules",
    "easycache": "latent",
    "predictor-corrector": "exact latent",
}


def numbers(facts: Facts, kind: str) -> int:
    """Bytes of what features grow with. Two modules in a double block and one in a single block, over both streams."""
    double, single = facts.lists
    latent, bytes = facts.image_tokens * facts.latent[1], 4 if facts.dtype == "float32" else 2
    return {
        "stream": facts.image_tokens * facts.width * bytes,
        "modules": (2 * double + single) * facts.tokens * facts.width * bytes,
        "latent": latent * bytes,
        "exact latent": latent * 4,
    }[kind]


def most_held(stack: Stack) -> int:
    """The most that a cache holds in a run, in bytes."""
    held: list[int] = []

    def note(*_: Any) -> dict[str, Any]:
        held.append(stack.report().cache_bytes)
        return {}

    with stack:
        stack(PROMPT, generator=torch.Generator().manual_seed(0), callback_on_step_end=note)
    return max(held)


@pytest.mark.parametrize("method", GROWS)
def test_state_of_flux_is_what_a_small_run_scales_to(method: str) -> None:
    """12 B parameters in bf16 beside two blocks of width 128 in fp32."""
    found = unloaded(of({"cache": {"method": method}}), published("black-forest-labs/FLUX.1-dev"), H100)
    assert found.parameters == 11_901_408_320
    large, pipe = found.plan.facts, tiny_pipe()
    (cache,) = found.plan.passes()
    small = Stack(pipe, steps=large.steps)
    options = {**cache.options()}
    if cache.policy.corrected:  # it holds as many latents as cached steps follow each other, on this ladder
        full = cache.policy.schedule_for(large.steps, (), large.levels).full_steps(large.steps)
        options |= {"full_steps": sorted(full), "steps": large.steps}
    features = most_held(Stack(pipe, steps=large.steps).cache(**options, corrected=False))
    owed = most_held(Stack(pipe, steps=large.steps).cache(**options)) - features
    parts = ((features, GROWS[method]), (owed, "exact latent"))
    expected = sum(held * numbers(large, kind) / numbers(small.facts, kind) for held, kind in parts)
    assert found.state_bytes == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4-weight", "nf4", "fp8-weight"])
def test_rounded_weights_take_the_bytes_of_a_real_model(scheme: str) -> None:
    """But for a few numbers per row that a product keeps beside the scales."""
    with Stack(tiny_pipe(), steps=14).quantize(scheme, backend="native", min_features=32) as stack:
        figures = stack.report().passes["quantize"]
        (stage,) = (stage for stage in stack.plan.stages if isinstance(stage.run, Quantize))
        assert isinstance(stage.run, Quantize)
        known = planned_weights(stage.run, stage.before)
        rows = sum(outputs for path, outputs, _ in stack.facts.linears if path in known.converted)
    assert known.before == figures["original_bytes"] and len(known.converted) == figures["converted"]
    assert 0 <= figures["weight_bytes"] - known.after <= 16 * rows


def test_two_precisions_hold_both_weights() -> None:
    once, twice = (
        unloaded(of({"quantize": {"scheme": "fp8", **ends}}), published("Qwen/Qwen-Image"), H100)
        for ends in ({}, {"ends": "keep"})
    )
    assert once.weights and twice.weights and twice.weights.after == once.weights.after + once.weights.before


def test_two_denoisers_have_twice_the_weights() -> None:
    one, two = (unloaded(of({}), published(f"Wan-AI/{name}-Diffusers"), H100) for name in ("Wan2.1-T2V-14B", WAN22))
    assert two.bytes_before == 2 * one.bytes_before and "in each of 2 denoisers" in told(two)


def test_savings_follow_amdahl() -> None:
    """Half as many bits are twice as fast on their share; 5 of 50 steps in full leave a tenth and what always runs."""
    model, quantize, cache = published("black-forest-labs/FLUX.1-dev"), {"scheme": "fp8"}, {"count": 5}
    found = unloaded(of({"quantize": quantize, "cache": {"method": "svd", **cache}}, 50), model, H100)
    assert found.work is not None and found.weights is not None
    rounded = found.work.share(found.weights.converted)
    rest = found.work.total.rest / found.work.total.step()
    assert 0.79 < rounded < 0.81 and 0 < rest < 0.001
    most = savings(found)
    assert most.alone["quantize"] == pytest.approx(1 / (1 - rounded / 2))
    assert most.alone["cache"] == pytest.approx(1 / (0.1 + 0.9 * rest))
    assert most.together == pytest.approx(1 / (0.1 * (1 - rounded / 2) + 0.9 * rest))
    assert savings(unloaded(of({}), model, H100)).together == 1.0


def test_8_bit_attention_saves_half_of_what_sparse_attention_leaves() -> None:
    model, sage = published("black-forest-labs/FLUX.1-dev"), {"even_if_slower": True}
    sparse = {"keep": 0.5, "even_if_slower": True}
    alone, both = (unloaded(of({"sage_attn": sage, **more}, 50), model, H100) for more in ({}, {"sparse_attn": sparse}))
    assert alone.work is not None
    share = alone.work.total.attention / alone.work.total.step()
    assert 0.19 < share < 0.21
    assert savings(alone).together == pytest.approx(1 / (1 - share / 2))
    left = both.plan.facts_after.attention_density
    assert 0.5 < left < 0.7 and savings(both).together == pytest.approx(1 / (1 - share * (1 - left / 2)))


# ---- what is asked for


def test_a_size_is_tokens_and_a_wrong_one_is_refused() -> None:
    flux, wan = published("black-forest-labs/FLUX.1-dev"), published("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    assert flux.at((512, 768), None).grid == (48, 32)
    assert wan.at((832, 480), 33).grid == (9, 30, 52)
    with pytest.raises(StackError, match="--size must be multiples of 16 of at most 16384"):
        flux.at((1000, 1000), None)
    with pytest.raises(StackError, match="makes pictures: expected no --frames, got 81"):
        flux.at(None, 81)
    with pytest.raises(StackError, match="--frames must be a multiple of 4 and 1 more"):
        wan.at(None, 80)
    with pytest.raises(StackError, match="is not known: leave out --size"):
        Published("mine", "", "DiTTransformer2DModel", "DDIMScheduler").at((512, 512), None)


def test_guidance_doubles_the_state_and_a_card_without_it_does_not() -> None:
    recipe, card = of({"cache": {"method": "svd", "count": 6}}), {"adapter": "qwen-image-lightning-8"}
    plain = unloaded(recipe, published("Qwen/Qwen-Image"), H100)
    distilled = unloaded(
        of({"distill": card, "cache": {"method": "svd", "count": 6}}), published("Qwen/Qwen-Image"), H100
    )
    assert plain.state is not None and plain.state_bytes == 2 * plain.state.total
    assert distilled.branches == 1


def test_a_card_is_for_the_pipelines_of_its_class() -> None:
    with pytest.raises(
        StackError, match="made for QwenImageTransformer2DModel: this denoiser is WanTransformer3DModel"
    ):
        unloaded(of({"distill": {"adapter": "qwen-image-lightning-8"}}), published(f"Wan-AI/{WAN22}-Diffusers"), H100)


def test_a_saved_pipeline_is_planned_without_its_weights(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    found = asked(of({"cache": {"method": "svd"}}), config=tmp_path, assume="h100")
    assert found is not None
    text = told(found)
    count = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    assert f"weights: {count / 1e9:.2f} B parameters" in text
    assert "size unknown: what a token of this class stands for is not known" in text
    with pytest.raises(StackError, match=r"expected model_index\.json of a saved pipeline"):
        from_folder(tmp_path / "gone")
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel", "layers": "x"')
    with pytest.raises(StackError, match="is no JSON"):
        from_folder(tmp_path)


def test_a_saved_pipeline_of_a_known_class_has_its_tokens(tmp_path: Path) -> None:
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    index |= {"transformer_2": [None, None], "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    parts = {
        "model_index.json": index,
        "transformer/config.json": {"_class_name": "WanTransformer3DModel", "num_layers": 30, "ffn_dim": 8960},
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0},
    }
    for name, content in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    model = from_folder(tmp_path)
    assert (model.denoisers, model.grid, model.config["num_layers"]) == (1, (21, 45, 80), 30)
    found = asked(of({}), config=tmp_path, size="832x480", frames=33, assume="h100")
    assert found is not None and "832x480, 33 frames: 9 x 30 x 52 tokens" in told(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "big"}, "--size must be WIDTHxHEIGHT in pixels, such as 1024x1024, or one side of a square, got"),
        ({"assume": "h10"}, "unknown machine 'h10'.*did you mean 'h100'"),
        ({"model": "nobody/nothing", "assume": "h100"}, "unknown model with a published configuration"),
        ({"device": "cpu", "assume": "h100"}, "--device loads the model: expected no --size"),
        ({"config": Path("x"), "model": "y"}, "expected --model or --config, got both"),
    ],
)
def test_what_cannot_be_planned_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        asked(load_recipe("flux-dev"), **given)


def test_a_model_that_ships_is_loaded() -> None:
    assert asked(load_recipe("fast")) is None
    assert asked(load_recipe("flux-dev"), device="cpu") is None, "a device asks for the weights"
