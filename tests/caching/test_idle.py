"""Where the schedule tells that no block runs on a step, embedders idle: less runs, and no picture changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.caching.sites import block_range
from stack.caching.sites.block_range import BlockRange
from stack.caching.sites.bypass import Bypass
from stack.models.derive.wiring import wiring_of

from ..conftest import PROMPT, inputs, picture, tiny_pipe
from ..models import test_dit, test_hunyuan_video

STEPS, PATTERN = 14, "ffcccfcccfcccf"
OPTIONS: dict[str, Any] = {"interval": 4, "warmup": 2}
FAMILIES = {
    "flux": (tiny_pipe, lambda run: picture(run, STEPS)),
    "dit": (test_dit.tiny, test_dit.draw),
    "hunyuan-video": (test_hunyuan_video.tiny, test_hunyuan_video.draw),
}


def embedders(pipe: Any) -> list[str]:
    """Modules that only blocks read, without the tables that are made once per request."""
    wiring = wiring_of(pipe.transformer)
    return [name for name in (*wiring.makers, *wiring.unread) if name not in wiring.constants]


def listen(pipe: Any) -> dict[str, list[torch.Tensor]]:
    """What each embedder's own forward was given, call by call."""
    heard: dict[str, list[torch.Tensor]] = {}
    for name in embedders(pipe):
        module = pipe.transformer.get_submodule(name)
        heard[name] = []
        module.forward = _heard(module.forward, heard[name])
    return heard


def _heard(inner: Any, into: list[torch.Tensor]) -> Any:
    return lambda *args, **kwargs: (into.append(args[0]), inner(*args, **kwargs))[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["svd", "teacache"])
def test_embedders_run_on_full_steps_only_and_pictures_stay(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, draw = FAMILIES[family]
    pipe = make()
    heard = listen(pipe)
    options = {**OPTIONS, "gate": ""}
    with Stack(pipe, steps=STEPS).cache(method, **options) as stack:
        made, report = draw(stack), stack.report()
    assert "".join(step.kind[0] for step in report.steps) == PATTERN
    for name in embedders(pipe):
        # teacache forecasts what the blocks add: to the output stream's own embedding.
        needed = method == "teacache" and name in wiring_of(pipe.transformer).makers
        assert len(heard[name]) == (STEPS if needed else PATTERN.count("f"))

    monkeypatch.setattr(
        block_range, "AllBlocks", lambda controller, residual: BlockRange(controller, residual=residual)
    )
    with Stack(make(), steps=STEPS).cache(method, **options) as stack:
        assert torch.equal(draw(stack), made)


def test_nothing_stands_in_where_the_decision_needs_the_blocks() -> None:
    pipe = tiny_pipe()
    heard = listen(pipe)
    with Stack(pipe, steps=STEPS).cache("svd", gate="budget", threshold=0.5) as stack:
        picture(stack, STEPS)
        assert 0 < stack.report().full_steps < STEPS
    assert {len(calls) for calls in heard.values()} == {STEPS}


@pytest.mark.parametrize("family", FAMILIES)
def test_embedders_run_where_some_tokens_do(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, draw = FAMILIES[family]
    pipe = make()
    heard = listen(pipe)
    options = {"cycle": "ca", "interval": 4, "warmup": 2, "pace": "even"}
    with Stack(pipe, steps=STEPS).cache("duca", **options) as stack:
        made = draw(stack)
        aggressive = sum(step.kind == "cached" for step in stack.report().steps)
    assert aggressive > 2
    assert {len(calls) for calls in heard.values()} == {STEPS - aggressive}
    monkeypatch.setattr(Bypass, "install", lambda *_: None)
    with Stack(make(), steps=STEPS).cache("duca", **options) as stack:
        assert torch.equal(draw(stack), made)


@torch.no_grad()
def test_a_longer_prompt_on_the_way_is_embedded_anew() -> None:
    with Stack(tiny_pipe().transformer, steps=STEPS).cache("svd", interval=7, warmup=1) as stack:
        sigmas = [1 - i / STEPS for i in range(4)]
        short = [{**inputs(sigma)} for sigma in sigmas]
        text = torch.cat([short[0]["encoder_hidden_states"]] * 2, 1)
        long = [{**given, "encoder_hidden_states": text, "txt_ids": torch.zeros(32, 3)} for given in short]
        for given in (*short[:2], *long[2:3]):
            made = stack.denoiser(**given).sample
        assert stack.report().steps[-1].kind == "full" and made.isfinite().all()
        assert stack.denoiser(**long[3]).sample.isfinite().all()
        assert stack.report().steps[-1].kind == "cached"


def test_between_calls_embedders_answer_for_themselves() -> None:
    pipe = tiny_pipe()
    tokens = torch.randn(1, 4, pipe.transformer.x_embedder.in_features)
    expected = pipe.transformer.x_embedder(tokens)
    with Stack(pipe, steps=STEPS).cache("svd", **OPTIONS) as stack:
        stack(PROMPT, num_inference_steps=STEPS, output_type="latent")
        assert torch.equal(stack.denoiser.x_embedder(tokens), expected)


def test_what_reads_a_stand_in_is_noticed() -> None:
    """A user's forward put before ours in mid-run; at the start of a call ours would be put before it again."""
    pipe = tiny_pipe()
    read: list[torch.Tensor] = []
    inner = pipe.transformer.norm_out.forward

    def exchange(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 0:
            embedder = pipe.transformer.x_embedder
            outer = embedder.forward
            embedder.forward = lambda tokens: (read.append(outer(tokens)), read[-1])[1]
            pipe.transformer.norm_out.forward = lambda tokens, temb: inner(tokens + read[-1] * 0, temb)
        return {}

    with Stack(pipe, steps=STEPS).cache("svd", **OPTIONS) as stack:
        generator = torch.Generator().manual_seed(1)
        made = stack(PROMPT, generator=generator, output_type="pt", callback_on_step_end=exchange).images
        assert made.isfinite().all()
        assert stack.report().full_steps == STEPS
        assert any("was NaN or infinity: the step was made again in full" in line for line in stack.report().warnings)
