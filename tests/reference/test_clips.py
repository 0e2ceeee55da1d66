"""Drawn videos, their captions, and the reader that names what they show."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.reference.clip_reader import STILL, ClipReader, direction_of
from stack.reference.clips import DIRECTIONS, FRAMES, Clip, draw_clips, parse_clip, sample_clip
from stack.reference.load import load_classifier, load_reader, reference
from stack.reference.prompt import STILLS, VIDEOS
from stack.reference.scenes import BACKGROUNDS, COLOURS, SHAPES
from training.evaluate import held_out_scenes

CLIPS = st.builds(Clip, *map(st.sampled_from, (list(COLOURS), SHAPES, list(DIRECTIONS), list(BACKGROUNDS))))
QUESTIONS = reference("shapes-video").asked


@given(CLIPS)
def test_captions_read_back_as_their_clip(clip: Clip) -> None:
    assert parse_clip(clip.caption()) == clip
    tokens = VIDEOS.tokens([clip.caption()])
    assert tokens.shape == (1, VIDEOS.length) and bool((tokens > 0).all())  # no word is padding
    assert [VIDEOS.words[token] for token in tokens[0]] == clip.caption().split()


@given(CLIPS, CLIPS)
def test_different_clips_have_different_tokens(clip: Clip, other: Clip) -> None:
    same = torch.equal(VIDEOS.tokens([clip.caption()]), VIDEOS.tokens([other.caption()]))
    assert same == (clip == other)


def test_words_of_still_pictures_keep_their_numbers() -> None:
    """A word table ships whose rows these are."""
    assert len(STILLS.words) == 29 and STILLS.length == 16
    assert [STILLS.words.index(word) for word in ("<pad>", "a", "below", "red", "star", "center", "navy")] == [
        0, 1, 8, 9, 19, 20, 28,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "same"),
    [
        ("A red ring moving left.", "a red ring moving left on a black background"),
        ("a cyan star moving up on white", "a cyan star moving up on a white background"),
    ],
)
def test_different_words_for_the_same_clip(caption: str, same: str) -> None:
    assert parse_clip(caption) == parse_clip(same)


@pytest.mark.parametrize(
    "caption", ["a red ring", "a red ring moving", "a pink ring moving left", "a red ring on white"]
)
def test_other_sentences_are_refused_with_the_grammar(caption: str) -> None:
    with pytest.raises(ValueError, match="expected 'a COLOUR SHAPE moving DIRECTION"):
        parse_clip(caption)


def test_a_shape_moves_evenly_from_one_side_to_the_other() -> None:
    (video,) = (draw_clips([Clip("red", "circle", "right", "white")], 32) + 1) / 2
    assert video.shape == (FRAMES, 3, 32, 32)
    white, red = torch.tensor(BACKGROUNDS["white"]), torch.tensor(COLOURS["red"])
    for place, frame in ((0.28, 0), (0.72, FRAMES - 1)):
        torch.testing.assert_close(video[frame, :, 16, int(place * 32)], red, atol=1e-3, rtol=0)
        torch.testing.assert_close(video[frame, :, 16, int((1 - place) * 32)], white, atol=1e-3, rtol=0)
    cover = (video - white[:, None, None]).abs().sum(1)
    columns = (cover.sum(1) * torch.arange(32)).sum(1) / cover.sum((1, 2))
    torch.testing.assert_close(columns.diff(), torch.full((FRAMES - 1,), 0.44 * 32 / 7), atol=0.02, rtol=0)


@given(st.integers(0, 1000), st.sampled_from([range(2), range(6, 8), range(2, 6)]))
def test_part_of_a_clip_is_a_part_of_its_drawing(seed: int, frames: range) -> None:
    clips = [sample_clip(random.Random(seed + i)) for i in range(2)]
    whole, part = draw_clips(clips, 16, random.Random(seed)), draw_clips(clips, 16, random.Random(seed), frames)
    torch.testing.assert_close(part, whole[:, frames.start : frames.stop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_directions_are_read_at_any_size_even_from_two_frames(direction: str, noise: float) -> None:
    rng = random.Random(1)
    clips = [replace(sample_clip(rng), direction=direction) for _ in range(12)]
    for size, frames in ((16, FRAMES), (32, FRAMES), (32, 2)):
        videos = draw_clips(clips, size, rng, range(frames))
        videos += noise * torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
        assert [direction_of(video) for video in videos] == [direction] * len(clips)


def test_what_does_not_move_has_no_direction() -> None:
    (frame,) = draw_clips([Clip("red", "star", "up")], 32, frames=[3])
    assert direction_of(frame.expand(FRAMES, -1, -1, -1)) == STILL
    assert direction_of(torch.zeros(FRAMES, 3, 32, 32)) == STILL


def test_the_reader_names_drawn_clips() -> None:
    reader, clips = load_reader("shapes-video"), held_out_scenes(48, sample_clip)
    assert isinstance(reader, ClipReader)
    videos = draw_clips(clips, 32, random.Random(0))
    for question in QUESTIONS:
        assert reader.accuracy(videos, clips, [question]) >= 0.97
    backwards = [replace(clip, direction=_OPPOSITE[clip.direction]) for clip in clips]
    assert reader.accuracy(videos.flip(1), backwards, ["direction"]) == 1.0
    assert reader.accuracy(videos.flip(1), clips, QUESTIONS) == pytest.approx(0.75, abs=0.02)


_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def test_most_frames_decide_what_is_shown() -> None:
    red, blue = draw_clips([Clip("red", "circle", "left"), Clip("blue", "circle", "left")], 32)
    red[:3] = blue[:3]
    assert ClipReader(load_classifier()).read(red[None])[0]["colour"] == "red"
