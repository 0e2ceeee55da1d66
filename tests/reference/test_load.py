from __future__ import annotations

import random

import pytest
import torch

from stack import StackError
from stack.reference.classifier import ATTRIBUTES
from stack.reference.clips import Clip
from stack.reference.load import REFERENCES, load, load_classifier, reference
from stack.reference.scenes import draw
from training.evaluate import held_out_scenes


def test_unknown_names() -> None:
    known = "shapes-dit, shapes-flux, shapes-flux-128, shapes-video"
    with pytest.raises(StackError, match=f"unknown reference model 'shapes': expected one of {known}"):
        load("shapes")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_prompt_asks_for_what_it_is_scored_on(name: str) -> None:
    model, rng = reference(name), random.Random(3)
    for scene in (model.sample(rng) for _ in range(100)):
        read, told = model.answers(model.parse(model.prompt(scene))), model.answers(scene)
        assert [read[question] for question in model.asked] == [told[question] for question in model.asked]
    assert model.prompt(model.parse(model.example)).startswith(model.example)


@pytest.mark.parametrize("name", REFERENCES)
def test_held_out_scenes_are_always_the_same_and_of_the_models_kind(name: str) -> None:
    scenes = held_out_scenes(64, reference(name).sample)
    assert scenes[:8] == held_out_scenes(8, reference(name).sample)
    kinds = {type(scene) if isinstance(scene, Clip) else len(scene.items) for scene in scenes}
    assert kinds == {"shapes-dit": {1}, "shapes-video": {Clip}}.get(name, {1, 2})


def test_accuracy_counts_the_questions_asked() -> None:
    reader, model = load_classifier(), reference("shapes-dit")
    drawn = held_out_scenes(40, model.sample)
    pictures = draw(drawn, 32, random.Random(0))
    told = [model.parse(model.prompt(scene)) for scene in drawn]
    assert reader.accuracy(pictures, told, model.asked) == 1.0
    # Place and background are not told: they are right by chance, in a fifth and a quarter of the pictures.
    assert 0.02 < reader.accuracy(pictures, told, ("background", "layout")) < 0.5
    assert reader.accuracy(torch.zeros_like(pictures), told, model.asked) < 0.5
    assert reader.accuracy(pictures, drawn) == reader.accuracy(pictures, drawn, ATTRIBUTES) > 0.99
