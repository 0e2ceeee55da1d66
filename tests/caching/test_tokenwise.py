"""ToCa and DuCa on a real diffusers model: what a conservative step computes, and what it does not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.methods import PRESETS
from stack.caching.sites.tokenwise import TokenSite
from stack.caching.tokenwise.budgets import BUDGETS

from ..conftest import PROMPT, inputs, picture, tiny_denoiser, tiny_pipe
from .rig import FF, FF_TEXT, IMAGE, JOINT, STEPS, TEXT, WIDTH, Rig, changed


def kinds(stack: Stack) -> str:
    return "".join(record.kind[0] for record in stack.report().steps)


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("duca-published", {}, "fffpcpcfpcpcfp"),
        ("toca-published", {}, "fffpppfpppfppp"),
        ("duca-published", {"interval": 3, "warmup": 1}, "fpcfpcfpcfpcfp"),
        ("duca-published", {"full_steps": (0, 5, 9), "steps": STEPS}, "fpcpcfpcpfpcpc"),
        ("duca-published", {"cycle": "a"}, "fffccccfccccfc"),
    ],
)
def test_steps_follow_the_cycle(method: str, options: dict[str, Any], expected: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(method, **options)
    picture(stack, STEPS)
    assert kinds(stack) == expected
    marks = expected.upper().replace("P", "p").replace("C", ".")
    assert f"14 denoiser calls, {expected.count('f')} full: {marks}" in str(stack.report())


def test_without_tokens_a_conservative_step_is_module_reuse() -> None:
    pipe = tiny_pipe()
    with Stack(pipe, steps=STEPS).cache("fora-published", interval=3) as fora:
        expected = picture(fora, STEPS)
    with Stack(pipe, steps=STEPS).cache("toca-published", interval=3, warmup=1, ratio=0.0) as toca:
        assert torch.equal(picture(toca, STEPS), expected)


def test_with_all_tokens_only_the_attention_is_reused() -> None:
    pipe = tiny_pipe()
    with Stack(pipe, steps=STEPS).cache("pab-published", interval=3, warmup=1) as attention_only:
        expected = picture(attention_only, STEPS)
    with Stack(pipe, steps=STEPS).cache("toca-published", interval=3, warmup=1, ratio=1.0, budget="even") as toca:
        assert torch.equal(picture(toca, STEPS), expected)


def given_to(module: torch.nn.Module) -> list[torch.Tensor]:
    """What a module is given, call by call."""
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


@torch.no_grad()
def test_a_conservative_step_computes_the_chosen_tokens_and_no_others() -> None:
    rig, whole = Rig(ratio=0.25), Rig(ratio=1.0)
    ff = rig.denoiser.transformer_blocks[0].ff
    seen, every = given_to(ff), given_to(whole.denoiser.transformer_blocks[0].ff)
    rig.call(0), whole.call(0)
    before = rig.snapshot()
    rig.call(1), whole.call(1)
    for key, tokens in ((FF, IMAGE), (FF_TEXT, TEXT), (JOINT, IMAGE + TEXT)):
        assert len(changed(before[key], rig.kept[key])) == tokens // 4
    rows = rig.controller.shared[f"{FF}/rows/1x{IMAGE}"]
    assert sorted(rows.tolist()) == changed(before[FF], rig.kept[FF])
    torch.testing.assert_close(seen[1], every[1][:, rows])
    torch.testing.assert_close(rig.kept[FF][:, rows], type(ff).forward(ff, every[1])[:, rows])
    for key in before.keys() - {FF, FF_TEXT, JOINT}:
        assert torch.equal(before[key], rig.kept[key]), f"{key} is attention: reused as it was"
    assert len(before) == 6  # double: two attention and two MLP outputs; single: attention and projection


@torch.no_grad()
def test_a_joint_projection_gets_kept_attention_and_a_fresh_mlp() -> None:
    rig = Rig(ratio=0.25)
    block = rig.denoiser.single_transformer_blocks[0]
    seen = given_to(block.proj_mlp)
    rig.call(0)
    before = rig.snapshot()
    rig.call(1)
    rows = rig.controller.shared[f"{JOINT}/rows/1x{IMAGE + TEXT}"]
    assert sorted(rows.tolist()) == changed(before[JOINT], rig.kept[JOINT])
    linear = torch.nn.functional.linear
    hidden = block.act_mlp(linear(seen[1], block.proj_mlp.weight, block.proj_mlp.bias))
    joint = torch.cat([before[f"{JOINT}/attention"][:, rows], hidden], dim=2)
    torch.testing.assert_close(rig.kept[JOINT][:, rows], linear(joint, block.proj_out.weight, block.proj_out.bias))


@pytest.mark.parametrize("method", ["toca-published", "fora-published", "pab-published"])
@torch.no_grad()
def test_norms_before_what_is_reused_see_no_tokens(method: str) -> None:
    """Only what is read is made: on cached steps norms of reused attention and MLPs have gates to make, no tokens."""
    denoiser = tiny_denoiser()
    double, single = denoiser.transformer_blocks[0], denoiser.single_transformer_blocks[0]
    attention, joint = given_to(double.norm1.norm), given_to(single.norm.norm)
    options = {"ratio": 0.25, "budget": "even"} if method == "toca-published" else {}
    with Stack(denoiser, steps=STEPS).cache(method, interval=3, warmup=1, **options) as stack:
        narrow: list[torch.Tensor] = []
        inner = double.norm2.forward
        double.norm2.forward = lambda x: (narrow.append(inner(x)), narrow[-1])[1]
        for step in range(3):
            stack.denoiser(**inputs(1 - step / STEPS))
    mlp_tokens = {"toca-published": IMAGE // 4, "fora-published": 0, "pab-published": IMAGE}[method]
    joint_tokens = {"toca-published": (IMAGE + TEXT) // 4, "fora-published": 0, "pab-published": IMAGE + TEXT}[method]
    assert [x.shape[1] for x in attention] == [IMAGE, 0, 0]
    assert [x.shape[1] for x in narrow] == [IMAGE, mlp_tokens, mlp_tokens]
    assert [x.shape[1] for x in joint] == [IMAGE + TEXT, joint_tokens, joint_tokens]


def test_what_was_computed_stays_until_the_next_full_step() -> None:
    rig = Rig(interval=5, ratio=0.25)
    rig.call(0)
    states = [rig.snapshot()]
    for step in (1, 2, 3, 4, 5):
        rig.call(step)
        states.append(rig.snapshot())
    touched = [set(changed(a[FF], b[FF])) for a, b in pairwise(states)]
    assert [len(rows) for rows in touched] == [16, 16, 16, 16, 64]
    never = set(range(IMAGE)) - set.union(*touched[:4])
    assert len(never) < (1 - 0.25) ** 4 * IMAGE, "waiting gives precedence over chance"
    assert torch.equal(states[4][FF][:, list(never)], states[0][FF][:, list(never)])


def test_gates_follow_the_time_on_a_conservative_step_and_only_the_head_does_on_an_aggressive_one() -> None:
    heads, outputs = [], []
    for sigma in (0.9, 0.3):
        rig = Rig(cycle="ca", interval=3, ratio=0.0)
        rig.call(0)
        full = rig.head
        outputs.append([rig.call(1, sigma=sigma)])
        heads.append(rig.head)
        outputs[-1].append(rig.call(2, sigma=sigma))
        assert full is not None and not torch.equal(heads[-1], full)
        assert rig.head is not None and torch.equal(rig.head, heads[-1])
    assert (heads[0] - heads[1]).abs().mean() > 1e-3
    assert not torch.equal(outputs[0][0], outputs[1][0]) and not torch.equal(outputs[0][1], outputs[1][1])


def test_no_block_runs_on_an_aggressive_step_and_no_attention_on_a_conservative_one() -> None:
    pipe, ran = tiny_pipe(), {"norm": 0, "to_q": 0}

    def count(name: str) -> Any:
        return lambda *_: ran.update({name: ran[name] + 1})

    block = pipe.transformer.transformer_blocks[0]
    block.norm1.register_forward_hook(count("norm"))
    block.attn.to_q.register_forward_hook(count("to_q"))
    stack = Stack(pipe, steps=STEPS).cache("duca-published")
    picture(stack, STEPS)
    done = kinds(stack)
    assert ran == {"norm": done.count("f") + done.count("p"), "to_q": done.count("f")}


def test_branches_keep_their_own_features() -> None:
    alone = Rig(ratio=0.25)
    expected = [alone.call(step, "uncond") for step in range(5)]
    rig = Rig(ratio=0.25)
    for step in range(5):
        rig.call(step, "cond")
        assert torch.equal(rig.call(step, "uncond"), expected[step])


@pytest.mark.parametrize("method", ["duca-published", "duca-values-published", "toca-published"])
def test_batched_equals_one_by_one(method: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(method, ratio=0.3, grid=(2, 0.5))
    prompts = [PROMPT, "a green circle", "a cyan star on a white background"]
    together = picture(stack, STEPS, prompt=prompts)
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i : i + 1], picture(stack, STEPS, prompt=prompt, seed=1 + i))


def test_a_request_does_not_depend_on_those_before_it_or_on_the_global_seed() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("duca-published", ratio=0.3)
    first = picture(stack, STEPS)
    torch.manual_seed(77)
    picture(stack, STEPS, prompt="a green circle", seed=9)
    assert torch.equal(picture(stack, STEPS), first)


def test_undo_is_bit_identical_over_other_passes() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).quantize("int8", min_features=64).cache("duca-values-published", ratio=0.3)
    assert not torch.equal(picture(stack, STEPS), before)
    stack.undo()
    assert torch.equal(picture(pipe, STEPS), before)
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


def test_nothing_is_reused_where_nothing_is_kept() -> None:
    rig = Rig(interval=5, ratio=0.25)
    rig.call(2)
    assert rig.kind == "full", "a request taken up in the middle"
    rig.call(3)
    assert rig.kind == "partial"
    before, rig.weights = rig.snapshot(), 1
    rig.call(4)
    assert rig.kind == "full" and rig.controller.dropped == 1, "other weights"
    assert len(changed(before[FF], rig.kept[FF])) == IMAGE


def test_errors_are_those_of_full_steps() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("duca-published")
    picture(stack, STEPS)
    assert [r.step for r in stack.report().steps if r.error is not None] == [1, 2, 7, 12]


def test_outputs_need_not_be_contiguous() -> None:
    plain, turned = Rig(ratio=0.25), Rig(ratio=0.25)
    last = turned.denoiser.transformer_blocks[0].ff.net[2]
    last.register_forward_hook(lambda module, args, output: output.mT.contiguous().mT)
    for step in (0, 1, 2):
        expected = plain.call(step, batch=2)
        torch.testing.assert_close(turned.call(step, batch=2), expected)


def test_an_exception_inside_a_conservative_step_leaves_nothing_behind() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=STEPS).cache("duca-published", ratio=0.3)
    whole = picture(stack, STEPS)
    calls = iter(range(STEPS))

    def fail(*_: Any) -> None:
        if next(calls) == 3:  # the first MLP has written its tokens into what is kept
            raise RuntimeError

    handle = pipe.transformer.single_transformer_blocks[0].norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        picture(stack, STEPS)
    handle.remove()
    assert torch.equal(picture(stack, STEPS), whole)


@pytest.mark.parametrize("select", ["random", "values"])
def test_bytes_are_those_of_the_tensors_held(select: str) -> None:
    rig = Rig(ratio=0.25, select=select)
    for step in (0, 1):
        for branch in ("cond", "uncond"):
            rig.call(step, branch)
    joint, element = IMAGE + TEXT, 4
    per_branch = (2 * joint + 2 * joint + IMAGE) * WIDTH * element
    assert sum(t.nbytes for t in rig.kept.values()) == per_branch - IMAGE * WIDTH * element
    tokens = IMAGE + TEXT + joint
    shared = tokens * 4 + tokens // 4 * 8 + (tokens * 4 if select == "values" else 0)
    assert rig.controller.bytes == 2 * per_branch + shared
    rig.call(0, batch=3)
    shared = 3 * tokens * 4 if select == "values" else 0
    assert rig.controller.bytes == 3 * per_branch + shared, "the next request keeps nothing of the last"
    rig.controller.reset()
    assert rig.controller.bytes == 0


def test_the_plan_says_what_will_happen() -> None:
    text = Stack(tiny_pipe(), steps=50).cache("duca-published").explain()
    assert "12 of 50 steps full (the first 3, then every 5 steps)" in text
    assert "19 steps conservative, 19 aggressive: FFFcacaFcacaF" in text
    assert "MLPs of 10% of the tokens (budget flux), chosen at random" in text
    assert "0.2 MB of state per picture and guidance branch" in text


@pytest.mark.parametrize("method", [name for name, policy in PRESETS.items() if isinstance(policy.site, TokenSite)])
def test_presets_name_known_budgets(method: str) -> None:
    site = PRESETS[method].site
    assert isinstance(site, TokenSite) and site.spread is BUDGETS[site.budget]
    assert PRESETS[method].forecast.effective_order == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cycle": ""}, "made of c"),
        ({"site": "per-module", "cycle": "c"}, "'cycle' is an option of site 'tokens'"),
        ({"cycle": "cx"}, "made of c"),
        ({"cycle": "cx", "full_steps": (0, 5), "steps": 50}, "made of c"),
        ({"pace": "fast"}, "unknown pace"),
        ({"ratio": 1.5}, r"ratio must be in \[0, 1\], got 1.5"),
        ({"budget": "sd"}, "unknown budget of the cache 'sd'"),
        ({"select": "norm"}, "unknown selection of tokens 'norm'"),
        ({"stale": -1.0}, "must not be negative"),
        ({"grid": (2,)}, "cache.grid: expected a list of 2"),
    ],
)
def test_impossible_choices_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cache("duca-published", **options)
