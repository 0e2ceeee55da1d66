"""Conditions that are read by identity first: what is the same object costs nothing, what is another is compared."""

from __future__ import annotations

from typing import Any

from stack.runtime import conditions
from stack.runtime.conditions import AttentionWatch, ConditionsReader
from stack.runtime.step import StepContext

from ..conftest import tiny_denoiser


def test_settings_of_attention_are_compared_only_where_an_object_is_another(monkeypatch: Any) -> None:
    looked: list[Any] = []
    settings = conditions._settings
    monkeypatch.setattr(conditions, "_settings", lambda p: (looked.append(p), settings(p))[1])
    denoiser = tiny_denoiser()
    processor = denoiser.transformer_blocks[0].attn.processor
    processor.scale = 0.5
    watch = AttentionWatch(denoiser)
    first = watch(1)
    assert len(looked) == 2 and watch(1) is first and len(looked) == 2
    processor.scale = float("0.5")  # another object of the same value
    assert watch(1) == first and len(looked) == 4
    processor.scale = 0.25
    assert watch(1) != first and len(looked) == 6
    del processor.scale
    processor.other = 0.25
    assert watch(1) != first


def test_a_processor_that_is_exchanged_or_added_to_is_seen() -> None:
    denoiser = tiny_denoiser()
    attention, watch = denoiser.single_transformer_blocks[0].attn, AttentionWatch(denoiser)
    before = watch(1)

    class Other(type(attention.processor)):  # type: ignore[misc]
        pass

    kept, attention.processor = attention.processor, Other()
    assert watch(1) != before
    attention.processor = kept
    assert watch(1) == before
    assert watch(2) == before


def test_conditions_are_read_once_a_call_and_again_after_a_pass_has_changed() -> None:
    passes = [3]
    reader = ConditionsReader(tiny_denoiser(), (), lambda: passes[0])
    reader.begin(StepContext(1, "cond", 0, 4, 1.0, 1.0, (1, 4, 12)), {"timestep": 1})
    known = reader()
    assert reader() is known and known.passes == 3 and reader.given == {"timestep": 1}
    passes[0] = 4
    assert reader() is not known and reader().passes == 4
    reader.end()
    assert reader.given == {}
