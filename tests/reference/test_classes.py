from __future__ import annotations

import random

import pytest

from stack.reference.classes import CLASSES, NULL, class_words, label_of, parse_class, sample_class
from stack.reference.scenes import BACKGROUNDS, PLACES, Scene


def test_every_class_has_its_words_and_its_number() -> None:
    assert len(CLASSES) == NULL == 30
    labels = [label_of(parse_class(class_words(Scene((item,), "left", "navy")))) for item in CLASSES]
    assert labels == list(range(30))
    assert parse_class("  A Red  ring. ") == parse_class("red ring") == Scene((("red", "ring"),), "center")


@pytest.mark.parametrize("prompt", ["a cat", "", "a red ring in the center", "a red ring left of a blue star", "ring"])
def test_more_or_less_than_a_class_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'a COLOUR SHAPE' with colours red"):
        parse_class(prompt)


def test_scenes_cover_classes_places_and_backgrounds() -> None:
    rng = random.Random(0)
    scenes = [sample_class(rng) for _ in range(3000)]
    counts = [sum(scene.items == (item,) for scene in scenes) for item in CLASSES]
    assert min(counts) > 60 and max(counts) < 150  # 100 expected, standard deviation 10
    assert {(scene.layout, scene.background) for scene in scenes} == {(p, b) for p in PLACES for b in BACKGROUNDS}
