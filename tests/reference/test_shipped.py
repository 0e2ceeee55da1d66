"""The checkpoints inside the package."""

from __future__ import annotations

import pytest
import torch

from stack import Stack
from stack.reference.load import MODELS, load, load_classifier, load_reader, reference, weights_folder
from stack.reference.names import SHARED
from training.evaluate import held_out_scenes, scores
from training.reader import held_out_accuracy

STEPS = 20


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SHARED])
def test_weights_fit_in_11_megabytes(name: str) -> None:
    files = [f for f in (weights_folder() / name).rglob("*") if f.is_file()]
    assert 5e6 < sum(f.stat().st_size for f in files) < 11e6
    assert {f.suffix for f in files} == {".json", ".safetensors"}


def test_the_reader_names_held_out_drawings() -> None:
    found = held_out_accuracy(load_classifier(), scenes=300, seed=4321)
    assert found["accuracy"] >= 0.98
    assert min(found.values()) >= 0.95


def test_the_model_draws_what_it_is_asked_for_and_a_stack_keeps_it() -> None:
    pipe, reader = load("shapes-flux", torch.float32), load_classifier()
    assert sum(p.numel() for p in pipe.transformer.parameters()) < 10e6
    scenes = held_out_scenes(2)
    captions = [scene.caption() for scene in scenes]

    def pictures(run: object) -> torch.Tensor:
        assert callable(run)
        generators = [torch.Generator().manual_seed(i) for i in range(len(scenes))]
        return run(captions, num_inference_steps=STEPS, generator=generators, output_type="pt").images

    exact = pictures(pipe)
    assert exact.shape == (2, 3, 64, 64)
    assert reader.accuracy(exact * 2 - 1, scenes) >= 0.9
    with Stack(pipe, steps=STEPS).quantize("int8").cache("svd", interval=3, gains=(1.0, 1.0)) as stack:
        fast = pictures(stack)
        assert stack.report().full_steps == 8
    # 30 dB: a root-mean-square error of 3 % of the range.
    assert (fast - exact).square().mean() < 1e-3
    assert reader.accuracy(fast * 2 - 1, scenes) >= 0.9


def test_shapes_dit_draws_the_classes_it_is_asked_for() -> None:
    pipe, reader, model = load("shapes-dit", torch.float32), load_classifier(), reference("shapes-dit")
    assert scores(pipe, reader, model, prompts=8, steps=10)["accuracy"] >= 0.85


def test_shapes_video_draws_the_clips_it_is_asked_for() -> None:
    pipe, reader, model = load("shapes-video", torch.float32), load_reader("shapes-video"), reference("shapes-video")
    found = scores(pipe, reader, model, prompts=2, steps=12)
    assert found["accuracy"] >= 0.75 and found["direction"] == found["colour"] == 1.0
