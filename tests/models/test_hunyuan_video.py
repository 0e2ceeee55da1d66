"""The HunyuanVideo family: every preset runs on it, masks and positions are cut with the tokens, and all comes off."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from stack import Stack
from stack.caching.memory import state_size
from stack.caching.methods import PRESETS
from stack.caching.sites.calls import BlockCall
from stack.core.arguments import Arguments
from stack.model_facts import facts_of
from stack.models.derive.wiring import wiring_of
from stack.models.schedule import uniform
from stack.quant.linears.int8 import Int8Linear
from stack.reference.video_pipeline import ShapesVideoPipeline
from training.shapes_video import TRANSFORMER, new_prompt_encoder, new_scheduler

from ..caching.fitted import PLAIN
from ..clocks import clock_of
from ..wirings import HUNYUAN_VIDEO

STEPS = 14
PROMPTS = ("a red ring moving left", "a blue star moving down on a white background")
VIDEO, TEXT, SIZE, FRAMES = 32, 9, 16, 4  # 2 x 4 x 4 video tokens of 2 x 4 x 4 pixels, and nine words
FITTED = [name for name in PLAIN if name.startswith("fastcache") or name == "magcache"]  # ask for a fitting run first


def tiny_denoiser(**other: object) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    config = {**TRANSFORMER, "num_attention_heads": 2, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)}
    small = {"num_layers": 2, "num_single_layers": 2, "patch_size": 4}
    return HunyuanVideoTransformer3DModel(**{**config, **small, **other}).eval()


def tiny() -> ShapesVideoPipeline:
    denoiser = tiny_denoiser()
    pipe = ShapesVideoPipeline(new_scheduler(), denoiser, new_prompt_encoder().eval(), size=SIZE, frames=FRAMES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(run: object, prompts: tuple[str, ...] = PROMPTS, **kwargs: object) -> torch.Tensor:
    assert callable(run)
    generators = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
    given = {"num_inference_steps": STEPS, "output_type": "latent", **kwargs}
    return run(list(prompts), generator=generators, **given).frames


@pytest.mark.parametrize("method", [name for name in PLAIN if name not in FITTED])
def test_every_preset_runs_and_comes_off(method: str) -> None:
    pipe = tiny()
    before = draw(pipe)
    stack = Stack(pipe, steps=STEPS).cache(method)
    during = draw(stack)
    kinds = [step.kind for step in stack.report().steps]
    assert len(kinds) == STEPS and kinds[0] == "full"
    assert (kinds.count("full") == STEPS) == torch.equal(during, before)
    assert torch.isfinite(during).all() and (during - before).abs().mean() < 0.2 * before.abs().mean()
    stack.undo()
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize(
    "method", ["svd-published", "taylorseer-published", "svd-published-blocks", "pab-published", "duca-published"]
)
def test_without_a_cached_step_nothing_changes(method: str) -> None:
    pipe = tiny()
    before = draw(pipe)
    with Stack(pipe, steps=STEPS).cache(method, interval=1) as stack:
        assert torch.equal(draw(stack), before)
        assert {step.kind for step in stack.report().steps} == {"full"}


@pytest.mark.parametrize(
    "method",
    [
        "svd-published",
        "taylorseer-published",
        "svd-published-blocks",
        "teacache",
        "speca-published",
        "dbcache-taylor",
        "duca-published",
        "duca-dit-published",
        "freqca-published",
    ],
)
def test_batched_equals_one_by_one(method: str) -> None:
    """Gates decide for every sample, so a batch may run some of its rows only, masks included."""
    stack = Stack(tiny(), steps=STEPS).cache(method)
    together = draw(stack)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(draw(stack, (prompt,)), together[i : i + 1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["fastcache-published", "fastcache-published-tokens", "fastcache-published-merge"])
def test_fastcache_runs_some_of_the_tokens(method: str) -> None:
    pipe = tiny()
    before = draw(pipe)
    stack = Stack(pipe, steps=STEPS).cache(method, moving=1.0)
    if PRESETS[method].site.needs_maps:
        stack.fit_maps(PROMPTS, progress=False)
    during = draw(stack)
    assert stack.report().passes["cache"]["block_share"] < 0.95
    assert 0 < (during - before).abs().mean() < 0.2 * before.abs().mean()
    stack.undo()
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("index", [0, 2])
def test_a_block_given_some_tokens_cuts_positions_and_mask(index: int) -> None:
    """Without its attention to others a token's output depends on itself and the text, wherever it is in the list."""
    _, block = HUNYUAN_VIDEO.blocks(tiny_denoiser())[index]
    video, text, temb = torch.randn(2, VIDEO, 64), torch.randn(2, TEXT, 64), torch.randn(2, 64)
    seen = torch.ones(2, 1, 1, VIDEO + TEXT, dtype=torch.bool)
    seen[0, ..., -3:] = False  # the first caption is shorter
    angles = torch.rand(VIDEO, 32)
    tables = angles.cos(), angles.sin()
    tokens = torch.tensor([3, 8, 30])
    only = torch.zeros_like(seen)
    only[..., tokens], only[..., VIDEO:] = True, seen[..., VIDEO:]
    arguments = Arguments(block.forward)
    with torch.no_grad():
        hidden, words = block(video, text, temb, only, tables)
        given = arguments.named((video, text, temb, seen, tables, None, 16), {})
        ports = HUNYUAN_VIDEO.ports_of("", arguments.names)
        call = BlockCall(block, block.forward, arguments, given, HUNYUAN_VIDEO, ports, clock_of(uniform(4)))
        some = call.run({"video": video[:, tokens], "text": text}, tokens=tokens)
        rows = call.run({"video": video[1:, tokens], "text": text[1:]}, [1], tokens)
    torch.testing.assert_close(some["video"], hidden[:, tokens], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some["text"], words, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows["video"], hidden[1:, tokens], atol=1e-5, rtol=1e-4)


def test_a_longer_caption_in_the_batch_changes_nothing_of_a_masked_one() -> None:
    """Padding that the mask hides stays hidden on cached steps."""
    denoiser = tiny_denoiser()
    text = torch.randn(1, TEXT, 64)
    mask = torch.tensor([[1.0] * 5 + [0.0] * 4])
    other = text.clone()
    other[:, 5:] = 7.0
    with Stack(denoiser, steps=STEPS).cache("taylorseer-published") as stack, torch.no_grad():
        finals = []
        for words in (text, other):
            video = torch.randn(1, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
            for step in range(STEPS):
                video = (
                    video
                    - stack(
                        hidden_states=video,
                        timestep=torch.tensor([1000.0 * (1 - step / STEPS)]),
                        encoder_hidden_states=words,
                        encoder_attention_mask=mask,
                        pooled_projections=torch.ones(1, 128),
                        return_dict=False,
                    )[0]
                    / STEPS
                )
            finals.append(video)
        assert any(step.kind == "cached" for step in stack.report().steps)
    torch.testing.assert_close(*finals, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", ["toca-published", "duca-values-published", "taylorseer-published", "pab-published", "dbcache"]
)
def test_where_nothing_changes_cached_steps_are_right(method: str) -> None:
    """A denoiser that does not look at the time, asked the same on every step: rows must find their places."""
    denoiser = tiny_denoiser()
    for embed in (denoiser.time_text_embed, denoiser.context_embedder.time_text_embed):
        torch.nn.init.zeros_(embed.timestep_embedder.linear_2.weight)
    given = {
        "hidden_states": torch.randn(2, 3, FRAMES, SIZE, SIZE),
        "encoder_hidden_states": torch.randn(2, TEXT, 64),
        "encoder_attention_mask": torch.tensor([[1.0] * TEXT, [1.0] * 5 + [0.0] * 4]),
        "pooled_projections": torch.randn(2, 128),
        "return_dict": False,
    }
    with Stack(denoiser, steps=STEPS).cache(method) as stack, torch.no_grad():
        outs = [stack(timestep=torch.full((2,), 1000.0 * (1 - s / STEPS)), **given)[0] for s in range(STEPS)]
        assert {step.kind for step in stack.report().steps} & {"cached", "partial"}
    for out in outs:
        torch.testing.assert_close(out, outs[0], atol=1e-4, rtol=0)


def test_the_grid_bonus_chooses_other_tokens() -> None:
    options = [{"ratio": 0.5, "grid": grid} for grid in ((2, 5.0), (0, 0.0), (1, 0.0))]
    bonus, none, nothing = (draw(Stack(tiny(), steps=STEPS).cache("duca-dit-published", **each)) for each in options)
    assert torch.equal(none, nothing) and not torch.equal(bonus, none)


def test_a_band_follows_the_size_of_each_request() -> None:
    """Besides four tensors of features the state is a projection along every axis."""
    stack = Stack(tiny(), steps=STEPS).cache("freqca-published", interval=2)
    for frames, size in ((FRAMES, SIZE), (2 * FRAMES, SIZE), (FRAMES, 2 * SIZE)):
        draw(stack, PROMPTS[:1], num_frames=frames, height=size, width=SIZE)
        grid = (frames // 2, size // 4, SIZE // 4)
        policy = PRESETS["freqca-published"]
        known = state_size(policy, replace(stack.facts, grid=grid, image_tokens=math.prod(grid)))
        assert known is not None and stack.report().cache_bytes == known.total
        assert known.total == 4 * math.prod(grid) * 64 * 4 + 4 * sum(side**2 for side in grid)


def test_facts() -> None:
    pipe = tiny()
    facts = facts_of(pipe.transformer, wiring_of(pipe.transformer), pipe, 50)
    assert (facts.image_tokens, facts.text_tokens, facts.blocks, facts.width) == (VIDEO, TEXT, 4, 64)
    assert facts.family == "hunyuan-video" and facts.grid == (2, 4, 4) and facts.guidance == "none"
    assert facts_of(pipe.transformer, HUNYUAN_VIDEO, None, 50).tokens == 0


@pytest.mark.parametrize("condition", ["latent_concat", "token_replace"])
def test_an_image_as_condition_changes_the_wiring(condition: str) -> None:
    """Some or all tokens of the first frame have a modulation of their own."""
    wiring = Stack(tiny_denoiser(image_condition_type=condition)).wiring
    assert wiring is not HUNYUAN_VIDEO and wiring.family == "hunyuan-video"
    assert wiring.block_lists == HUNYUAN_VIDEO.block_lists and wiring.output_stream == "video"


def test_too_short_for_sparse_attention_and_says_so() -> None:
    stack = Stack(tiny(), steps=STEPS).sparse_attn()
    assert "none of which would be dropped" in stack.explain()
    assert stack.plan.passes() == ()


def test_quantized_traced_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's own code is tested on FLUX; here blocks are traced without one.

    One graph for the double blocks and two for the single ones, whose slices have other strides than what they are cut
    from: the first of them is handed whole tensors.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    pipe = tiny()
    before = draw(pipe)
    stack = Stack(pipe, steps=STEPS).quantize("int8", min_features=64).cache("svd-published")
    during = draw(stack)
    assert 0 < (during - before).abs().mean() < 0.2 * before.abs().mean()
    stack.undo()
    with Stack(pipe, steps=STEPS).quantize("int8", min_features=64).compile().cache("svd-published") as traced:
        start = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.testing.assert_close(draw(traced), during, atol=1e-3, rtol=0)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - start == 3
    assert torch.equal(draw(pipe), before)


def test_linears_that_read_one_tensor_round_it_once() -> None:
    """No group waits for a member that reads another tensor: nothing is held between calls."""
    pipe = tiny()
    with Stack(pipe, steps=STEPS).quantize("int8", min_features=64):
        draw(pipe, num_inference_steps=1)
        shared = {id(m.shared): m.shared for m in pipe.transformer.modules() if isinstance(m, Int8Linear)}
        assert len(shared) > 4 and not any(rows.holds for rows in shared.values())
