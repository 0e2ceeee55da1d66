"""Masks where a look into them waits for the device: looked into on the first step of a request, and never again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stack import Stack
from stack.attention import layers as subject
from stack.attention.layers import MORE, NOTHING, OTHERS, AttentionCall, put_backend
from stack.core.installer import Installer

from .build import STEPS, TOKENS, Whole, chroma, hunyuan_video, qwen

BUILD: dict[str, Callable[[], Whole]] = {"chroma": chroma, "hunyuan-video": hunyuan_video, "qwen": qwen}
MASK = {"chroma": "prompt_attention_mask", "hunyuan-video": "prompt_attention_mask", "qwen": "prompt_embeds_mask"}
# What is hidden where the last token of the text is padding; Chroma's mask hides it as a query, too.
PADDED = {"chroma": MORE, "hunyuan-video": OTHERS, "qwen": OTHERS}


class Asking:
    """Asks every call what its mask hides, and computes none."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.said: list[tuple[int, str, str]] = []  # step, branch, answer

    def unfit(self, call: AttentionCall) -> str:
        context = self.stack.clock.context
        assert context is not None
        self.said.append((context.step, context.branch, call.hides))
        return "only asked"

    def run(self, *_: Any) -> torch.Tensor:
        raise AssertionError

    def note(self, reason: str, call: AttentionCall | None) -> None:
        assert call is not None


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Looks into masks: the layer, and how many came before."""
    monkeypatch.setattr(subject, "reads_are_free", lambda device: False)
    found: list[tuple[str, int]] = []
    real = AttentionCall._looked

    def looked(call: AttentionCall, mask: torch.Tensor) -> str:
        found.append((call.layer, len(found)))
        return real(call, mask)

    monkeypatch.setattr(AttentionCall, "_looked", looked)
    return found


def padded(name: str, whole: Whole) -> dict[str, torch.Tensor]:
    mask = whole.given[MASK[name]].clone()
    assert mask.shape == (1, TOKENS)
    mask[:, -1] = 0
    return {MASK[name]: mask}


@pytest.mark.parametrize("name", ["chroma", "hunyuan-video"])  # Qwen-Image's pipeline leaves out a mask without padding
def test_a_mask_is_looked_into_on_the_first_step_alone(name: str, looks: list[tuple[str, int]]) -> None:
    whole = BUILD[name]()
    with Stack(whole.pipe, steps=STEPS) as stack:
        asking = Asking(stack)
        layers = put_backend(stack._target, Installer(), asking)
        whole.call(stack)
        branches = {branch for _, branch, _ in asking.said}
        masked = {layer for layer, _ in looks}
        assert masked <= layers.keys() and masked
        assert Counter(layer for layer, _ in looks).most_common(1)[0][1] <= len(branches) == 2
        assert {step for step, *_ in asking.said} == set(range(STEPS))
        assert {answer for *_, answer in asking.said} == {NOTHING}  # no token of these texts is padding
        # Another request is looked into anew: here the text ends in padding.
        before = len(looks)
        asking.said.clear()
        whole.call(stack, **padded(name, whole))
        assert len(looks) == 2 * before
        first = next(branch for _, branch, _ in asking.said)
        assert {answer for _, branch, answer in asking.said if branch == first} == {PADDED[name]}


@pytest.mark.parametrize("name", BUILD)
def test_what_is_kept_of_a_mask_is_what_a_look_on_every_step_says(name: str, looks: list[tuple[str, int]]) -> None:
    said = []
    for free in (False, True):
        whole = BUILD[name]()
        with pytest.MonkeyPatch.context() as patch, Stack(whole.pipe, steps=STEPS) as stack:
            patch.setattr(subject, "reads_are_free", lambda device, free=free: free)
            asking = Asking(stack)
            put_backend(stack._target, Installer(), asking)
            whole.call(stack, **padded(name, whole))
            said.append(asking.said)
    assert said[0] == said[1]
