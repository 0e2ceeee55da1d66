"""FastCache on a real diffusers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.fastcache.choices import KNOWN, FastCacheChoices
from stack.caching.fastcache.linear_map import LinearMap
from stack.caching.fastcache.maps import APPROXIMATIONS, WHOLE, LinearMaps, load_maps
from stack.caching.fastcache.replacement import Kept, Replacement
from stack.recipe import load_recipe, parse_recipe, recipe_toml

from ..conftest import PROMPT, inputs, picture, tiny_denoiser, tiny_pipe

STEPS = 14
WIDTH, BLOCKS, TOKENS = 128, 2, 64
PRESETS = ("fastcache-published", "fastcache-published-gate", "fastcache-published-tokens", "fastcache-published-merge")


def made_up(scale: float = 1e9, **changes: Any) -> LinearMaps:
    """Maps with small random weights; `scale` is the delta up to which the gate lets every block be replaced."""
    g = torch.Generator().manual_seed(0)
    keys = [*(f"{n}/{stream}" for n in range(BLOCKS) for stream in ("text", "image")), WHOLE]
    maps = {
        key: LinearMap((torch.randn(WIDTH, WIDTH, generator=g) * 0.02,), torch.randn(WIDTH, generator=g))
        for key in keys
    }
    table = torch.tensor([[[scale]] * BLOCKS, [[0.0]] * BLOCKS])
    facts = {"family": "flux", "blocks": BLOCKS, "width": WIDTH, **changes}
    return LinearMaps(**facts, maps=dict.fromkeys(APPROXIMATIONS, maps), tables=dict.fromkeys(APPROXIMATIONS, table))


def kinds(stack: Stack) -> str:
    return "".join(record.kind[0] for record in stack.report().steps)


def twice(model: Any, second: dict[str, torch.Tensor]) -> torch.Tensor:
    """Two steps of a bare denoiser; the output of the second."""
    with torch.no_grad():
        model(**inputs(1.0))
        return model(**second).sample


@pytest.mark.parametrize("method", PRESETS[:3])
def test_without_fitted_maps_it_is_refused_and_nothing_is_touched(method: str) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).cache(method)
    with pytest.raises(StackError, match=r"none have been fitted; try: stack\.fit_maps\(prompts\)"):
        stack.apply()
    assert not stack.applied and torch.equal(picture(pipe, STEPS), before)


def test_maps_of_another_model_are_refused() -> None:
    stack = Stack(tiny_denoiser()).cache("fastcache-published", maps=made_up(blocks=57, width=3072))
    with pytest.raises(StackError, match="flux with 57 blocks of width 3072, this is flux with 2 blocks of width 128"):
        stack.apply()


def test_the_plan_says_what_it_will_do_and_what_that_was_worth() -> None:
    maps = made_up(1.0)
    gate = Stack(tiny_denoiser()).cache("fastcache-published-gate", maps=maps, approximation="delta").explain()
    assert "maps that cost at most 5.0% of a block's output on average replace it; 0 of 2 blocks always run" in gate
    assert "where its input changed by at most 0.01 + 0.5 delta" in gate and "lose the others" not in gate
    for method in ("fastcache-published", "fastcache-published-tokens", "fastcache-published-merge"):
        assert "[note] cache: tokens that run lose the others as context" in (
            Stack(tiny_denoiser(), strict=True).cache(method, maps=maps).explain()
        )


@pytest.mark.parametrize("approximation", KNOWN)
def test_with_every_threshold_at_0_nothing_changes(approximation: str) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    options = {"threshold": 0.0, "moving": 0.0, "merged": 1.0, "approximation": approximation, "maps": made_up(0.0)}
    with Stack(pipe, steps=STEPS).cache("fastcache-published", **options) as stack:
        assert torch.equal(picture(stack, STEPS), before)
        assert kinds(stack) == "f" * STEPS and stack.report().passes["cache"]["block_share"] == 1
        assert "0 of 14 steps cached" in str(stack.report())
    assert torch.equal(picture(pipe, STEPS), before)


def test_with_every_block_skipped_the_maps_follow_each_other() -> None:
    denoiser, maps = tiny_denoiser(), made_up()
    seen: dict[str, torch.Tensor] = {}
    denoiser.x_embedder.register_forward_hook(lambda _, __, out: seen.update(entry=out))
    denoiser.norm_out.register_forward_hook(lambda _, given, __: seen.update(last=given[0]))
    stack = Stack(denoiser, steps=STEPS).cache(
        "fastcache-published-gate", maps=maps, approximation="static", warmup=1, adaptive=()
    )
    twice(stack, inputs(1 - 1 / STEPS))
    x = seen["entry"]
    for number in range(BLOCKS):
        x = x + maps.maps["static"][f"{number}/image"](x)
    torch.testing.assert_close(seen["last"], x)
    assert kinds(stack) == "fc" and stack.report().passes["cache"]["block_share"] == 0.5


@pytest.mark.parametrize(("threshold", "kind"), [(1e9, "fc"), (1e-9, "ff")])
def test_a_skipped_block_adds_what_it_added_when_it_ran(threshold: float, kind: str) -> None:
    denoiser, seen = tiny_denoiser(), dict[str, torch.Tensor]()
    denoiser.x_embedder.register_forward_hook(lambda _, __, out: seen.update(entry=out))
    denoiser.norm_out.register_forward_hook(lambda _, given, __: seen.update(last=given[0]))
    stack = Stack(denoiser, steps=STEPS).cache("fastcache", threshold=threshold, warmup=1)
    with torch.no_grad():
        stack(**inputs(1.0))
        added = seen["last"] - seen["entry"]
        second = inputs(1 - 1 / STEPS)
        second["hidden_states"] = second["hidden_states"] * 1.1
        stack(**second)
    assert kinds(stack) == kind
    reused = torch.allclose(seen["last"], seen["entry"] + added, rtol=1e-5, atol=1e-5)
    assert reused == (kind == "fc")


def test_static_tokens_pass_by_the_map_of_the_whole_stack() -> None:
    denoiser, maps = tiny_denoiser(), made_up()
    seen: dict[str, torch.Tensor] = {}
    denoiser.norm_out.register_forward_hook(lambda _, given, __: seen.update(last=given[0]))
    stack = Stack(denoiser, steps=STEPS).cache(
        "fastcache-published-tokens", maps=maps, approximation="static", warmup=1, moving=100.0
    )
    second = inputs(1 - 1 / STEPS)
    second["hidden_states"] = second["hidden_states"] * 1.1
    twice(stack, second)
    entry = denoiser.x_embedder(second["hidden_states"])
    torch.testing.assert_close(seen["last"], entry + maps.maps["static"][WHOLE](entry))
    assert kinds(stack) == "fc"


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_moving_tokens_run_at_their_own_positions_without_the_static_ones(approximation: str) -> None:
    """Tokens that run come out as if the model had been given them alone, with their own ids."""
    moving, second, alone = [3, 17, 40], inputs(1 - 1 / STEPS), inputs(1 - 1 / STEPS)
    second["hidden_states"][:, moving] += 1
    alone["hidden_states"], alone["img_ids"] = second["hidden_states"][:, moving], second["img_ids"][moving]
    with torch.no_grad():
        expected = tiny_denoiser()(**alone).sample
    options = {"maps": made_up(), "warmup": 1, "moving": 1.0, "approximation": approximation}
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("fastcache-published-tokens", **options)
    out = twice(stack, second)
    torch.testing.assert_close(out[:, moving], expected, rtol=1e-4, atol=1e-5)
    assert kinds(stack) == "fp"
    assert stack.report().passes["cache"]["block_share"] == pytest.approx((1 + 3 / TOKENS) / 2)
    # What moved one step earlier is static again, whether the step before or the last run is compared with.
    third = {**second, "timestep": torch.full((1,), 1 - 2 / STEPS), "hidden_states": second["hidden_states"].clone()}
    third["hidden_states"][:, 50] += 1
    with torch.no_grad():
        stack(**third)
    assert stack.report().passes["cache"]["block_share"] == pytest.approx((1 + 3 / TOKENS + 1 / TOKENS) / 3)


def test_under_moved_the_last_run_is_carried_on() -> None:
    like, maps = torch.zeros(1), made_up(0.3)
    policy = FastCacheChoices(approximation="delta", threshold=0.1, maps=maps)
    use, kept, key = Replacement(policy, like), Kept(), "1/image"
    x, out = torch.randn(2, 1, TOKENS, WIDTH)
    assert not use.skips(kept, 1, key, x, None, 0.5)
    use.remember(kept, key, x, out, None)
    torch.testing.assert_close(use.output(kept, key, x, None), out)
    step = 0.1 * torch.randn_like(x)
    torch.testing.assert_close(
        use.output(kept, key, x + step, None), out + step + step @ maps.maps["delta"][key].factors[0]
    )
    # What was replaced is not compared with: the change adds up until the block runs again.
    assert use.skips(kept, 1, key, 1.2 * x, None, 0.5)
    use.remember(kept, key, 1.2 * x, None, None)
    assert not use.skips(kept, 1, key, 1.4 * x, None, 0.5)
    places = torch.tensor([2, 5])
    torch.testing.assert_close(use.output(kept, key, x[:, places], places), out[:, places])


def test_the_published_map_compares_with_the_step_before_and_the_adaptive_threshold_caps_it() -> None:
    x, kept = torch.randn(1, TOKENS, WIDTH), Kept()
    free = Replacement(FastCacheChoices(threshold=0.1, maps=made_up(0.3)), x)
    capped = Replacement(FastCacheChoices(threshold=0.1, maps=made_up(0.3), adaptive=(0.01, 0.5, 0, 0)), x)
    free.remember(kept, "0/image", x, None, None)
    free.remember(kept, "0/image", 1.2 * x, None, None)
    assert free.skips(kept, 0, "0/image", 1.4 * x, None, 0.5) and not free.skips(kept, 0, "0/image", 1.6 * x, None, 0.5)
    assert not capped.skips(kept, 0, "0/image", 1.4 * x, None, 0.5)
    assert capped.skips(kept, 0, "0/image", 1.22 * x, None, 0.5)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of the tiny pipeline, in a file."""
    path = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).cache("fastcache-published")
    maps = stack.fit_maps(["a green circle", "a cyan star"], save=path, progress=False)
    assert not stack.applied and torch.equal(picture(pipe, STEPS), before)
    for approximation in APPROXIMATIONS:
        assert maps.maps[approximation].keys() == load_maps(path).maps[approximation].keys()
        assert len(maps.maps[approximation]) == 2 * BLOCKS + 1
        assert all(bool(each.bias.any()) == (approximation == "static") for each in maps.maps[approximation].values())
    assert all(table.shape == (2, BLOCKS, 2 * (STEPS - 1)) for table in maps.tables.values())
    return path


def test_the_fit_predicts_what_it_says(fitted: Path) -> None:
    """A held-out prompt's blocks are replaced at about the error that was measured, and far below skipping it."""
    pipe, maps = tiny_pipe(), load_maps(fitted)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = pipe.transformer.transformer_blocks[0]
    block.register_forward_hook(
        lambda _, __, given, out: seen.append((given["hidden_states"], out[1])), with_kwargs=True
    )
    picture(pipe, STEPS)
    errors = [float((x + maps.maps["static"]["0/image"](x) - y).norm() / y.norm()) for x, y in seen]
    nothing = [float((x - y).norm() / y.norm()) for x, y in seen]
    told = maps.tables["static"][1, 0].mean()
    assert sum(errors) / len(errors) == pytest.approx(float(told), rel=0.5)
    assert sum(errors) < 0.75 * sum(nothing)


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize("method", PRESETS)
def test_it_saves_work_and_comes_off_again(method: str, approximation: str, fitted: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    with Stack(pipe, steps=STEPS).cache(
        method, maps=fitted, approximation=approximation, threshold=0.05, adaptive=()
    ) as stack:
        first = picture(stack, STEPS)
        assert stack.report().passes["cache"]["block_share"] < 1 and stack.report().passes["cache"]["dropped"] == 0
        assert 0 < float((first - before).abs().mean()) < 0.01
        picture(stack, STEPS, prompt="a green circle", seed=9)
        assert torch.equal(picture(stack, STEPS), first)
    assert torch.equal(picture(pipe, STEPS), before)


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_batched_equals_one_by_one(approximation: str, fitted: Path) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(
        "fastcache-published", maps=fitted, approximation=approximation, threshold=0.03, adaptive=()
    )
    prompts = [PROMPT, "a green circle"]
    together = picture(stack, STEPS, prompt=prompts)
    for i, prompt in enumerate(prompts):
        alone = picture(stack, STEPS, prompt=prompt, seed=1 + i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-4)


def test_state_is_what_the_plan_says(fitted: Path) -> None:
    one = TOKENS * WIDTH * 4
    text = 16 * WIDTH * 4
    for method, approximation, expected in (
        ("fastcache-published-gate", "static", (BLOCKS + 1) * one),
        ("fastcache-published-gate", "delta", (2 * BLOCKS + 1) * one + 2 * BLOCKS * text),
        ("fastcache-published-tokens", "delta", 2 * one),
        ("fastcache-published-merge", "static", one),
    ):
        stack = Stack(tiny_pipe(), steps=STEPS).cache(method, maps=fitted, approximation=approximation)
        picture(stack, STEPS)
        assert stack.report().cache_bytes == expected
        assert f"{expected / 1e6:.1f} MB of state" in stack.explain()


def test_a_recipe_names_the_file_beside_it(fitted: Path) -> None:
    options = {"method": "fastcache-published", "threshold": 0.02, "maps": fitted.name}
    recipe = parse_recipe({"steps": STEPS, "cache": options}, "own", fitted.parent)
    path = fitted.parent / "own.toml"
    path.write_text(recipe_toml(recipe))
    back = load_recipe(str(path))
    assert back == recipe and back.stages["cache"]["maps"] == fitted.name
    direct = picture(Stack(tiny_pipe(), steps=STEPS).cache("fastcache-published", threshold=0.02, maps=fitted), STEPS)
    assert torch.equal(picture(Stack.from_recipe(back, tiny_pipe()), STEPS), direct)
    path.write_text(recipe_toml(recipe).replace(fitted.name, "gone.safetensors"))
    with pytest.raises(StackError, match=r"recipe .*own.toml: cache: no linear maps in .*gone"):
        load_recipe(str(path))


def test_what_cannot_be_fitted() -> None:
    pipe = tiny_pipe()
    with pytest.raises(StackError, match="or another FastCache that replaces blocks by maps; got"):
        Stack(pipe, steps=STEPS).cache("svd").fit_maps([PROMPT])
    with pytest.raises(StackError, match="expected at least one, got none"):
        Stack(pipe, steps=STEPS).cache("fastcache-published").fit_maps([])
    with pytest.raises(StackError, match="got a bare denoiser"):
        Stack(pipe.transformer, steps=STEPS).cache("fastcache-published").fit_maps([PROMPT])


def test_a_fit_that_fails_leaves_model_and_stack_as_they_were() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).cache("fastcache-published")
    with pytest.raises(ValueError, match="cannot read the prompt"):
        stack.fit_maps(["nothing it knows"], progress=False)
    assert not stack.applied and torch.equal(picture(pipe, STEPS), before)
    with pytest.raises(StackError, match="none have been fitted"):
        stack.apply()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": ("gates",)}, "unknown part of FastCache 'gates'"),
        ({"approximation": "moving"}, "unknown approximation of FastCache"),
        ({"alpha": 1.0}, "alpha in"),
        ({"merged": 0.0}, "merged in"),
        ({"moving": -1.0}, "moving and motion of at least 0"),
        ({"adaptive": (0.1,)}, r"b0, b1, b2, b3"),
    ],
)
def test_bad_options_are_refused_while_building(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Stack(tiny_denoiser()).cache("fastcache-published", **options)


def test_a_saved_stack_holds_the_maps_too(fitted: Path, tmp_path: Path) -> None:
    pipe = tiny_pipe()
    with (
        Stack(pipe, steps=STEPS)
        .quantize("int8-weight", min_features=32)
        .cache("fastcache-published-gate", maps=fitted, threshold=0.05) as stack
    ):
        expected, maps = picture(stack, STEPS), stack.passes[-1].policy.site.maps
        stack.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "maps.safetensors").is_file()
    loaded = Stack.load(tmp_path / "saved", tiny_pipe())
    assert loaded.passes[-1].policy.site.maps.tables["delta"].equal(maps.tables["delta"])
    assert torch.equal(picture(loaded, STEPS), expected)
    with pytest.raises(StackError, match=r"cannot hold what was fitted \(maps\)"):
        stack.passes[-1].options()
