from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.reference.prompt import STILLS, tokenize
from stack.reference.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, draw, parse, sample


@given(st.integers(0, 10_000))
def test_captions_read_back_as_their_scene(seed: int) -> None:
    scene = sample(random.Random(seed))
    assert parse(scene.caption()) == scene
    assert tokenize([scene.caption()]).shape == (1, STILLS.length)


@pytest.mark.parametrize(
    ("caption", "same"),
    [
        ("a blue star right of a red ring", "a red ring left of a blue star"),
        ("A red circle below a green square.", "a green square above a red circle"),
        ("a cyan star", "a cyan star in the center"),
        ("a cyan star on white", "a cyan star in the center on a white background"),
    ],
)
def test_different_words_for_the_same_scene(caption: str, same: str) -> None:
    assert parse(caption) == parse(same)
    assert torch.equal(tokenize([caption]), tokenize([same]))


@pytest.mark.parametrize("caption", ["a cat", "a red ring near a blue star", "", "a pink ring"])
def test_other_sentences_are_refused_with_the_grammar(caption: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'a COLOUR SHAPE"):
        parse(caption)


def test_a_drawing_shows_the_colours_where_they_belong() -> None:
    scene = Scene((("red", "square"), ("blue", "circle")), "left of", "white")
    image = (draw([scene], 64)[0] + 1) / 2
    for (x, y), colour in {(17, 32): COLOURS["red"], (47, 32): COLOURS["blue"], (2, 2): BACKGROUNDS["white"]}.items():
        torch.testing.assert_close(image[:, y, x], torch.tensor(colour), atol=1e-3, rtol=0)


def test_shapes_differ_and_a_ring_is_hollow() -> None:
    scenes = [Scene((("red", shape),), "center") for shape in SHAPES]
    images = draw(scenes, 64)
    for i in range(len(SHAPES)):
        for j in range(i):
            changed = (images[i] - images[j]).abs().amax(0) > 0.5
            assert changed.float().mean() > 0.01, (SHAPES[i], SHAPES[j])
    ring = images[SHAPES.index("ring")]
    background = torch.tensor(BACKGROUNDS["black"]) * 2 - 1
    torch.testing.assert_close(ring[:, 32, 32], background, atol=1e-3, rtol=0)
