from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stack.core.errors import StackError
from stack.measure import prompt_scores
from stack.measure.efficientnet import load_efficientnet
from stack.measure.metrics import ms_ssim, ssim
from stack.measure.prompt_scores import clip_score, image_reward, load_clip, load_image_reward
from stack.measure.quality import METRICS, Judge

DOCS = Path(__file__).parents[2] / "docs" / "quality.md"
# Photographs of scikit-image and the class of ImageNet that a good network gives each.
PHOTOGRAPHS = {"chelsea": (281, 282, 285), "coffee": (967,), "rocket": (657,)}


def photograph(name: str, side: int = 192) -> torch.Tensor:
    """(1, 3, side, side): the middle of a photograph."""
    from skimage import data

    pixels = torch.from_numpy(np.array(getattr(data, name)())).permute(2, 0, 1)[None] / 255
    height, width = pixels.shape[-2:]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = pixels[..., top : top + least, left : left + least]
    return F.interpolate(square, (side, side), mode="bilinear", antialias=True)


def noisy(pictures: torch.Tensor, share: float) -> torch.Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + share * noise).clamp(0, 1)


def metric(name: str) -> Any:
    (found,) = [metric for metric in METRICS if metric.name == name]
    return found


@pytest.mark.parametrize("name", ["psnr_db", "ssim", "ms_ssim", "st_lpips"])
def test_more_noise_is_worse_in_the_direction_that_it_says(name: str) -> None:
    picture = photograph("chelsea")
    measure = metric(name).load()
    found = [measure(noisy(picture, share), picture, ["a cat"]) for share in (0.0, 0.02, 0.1, 0.4)]
    assert found == sorted(found, reverse=metric(name).better == "higher")
    assert len(set(found)) == 4


def test_ssim_is_the_published_one() -> None:
    from skimage.metrics import structural_similarity

    picture = photograph("coffee", 128)
    other = noisy(picture, 0.05)
    _, everywhere = structural_similarity(
        other[0].permute(1, 2, 0).numpy(), picture[0].permute(1, 2, 0).numpy(), channel_axis=2, data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(other, picture) == pytest.approx(everywhere.mean(), abs=3e-4)  # borders are padded, and count


def test_five_scales_need_large_pictures() -> None:
    picture = photograph("chelsea", 176)
    assert ms_ssim(picture, picture) == pytest.approx(1.0)
    assert ms_ssim(picture[..., :175], picture[..., :175]) is None
    # Mild blur hurts the finest scale alone: five scales mind it less than one.
    blurred = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="reflect"), 3, 1)
    assert ssim(blurred, picture) < float(ms_ssim(blurred, picture) or 0) < 1


def test_the_network_knows_what_it_sees() -> None:
    pictures = torch.cat([photograph(name, 300) for name in PHOTOGRAPHS])
    network = load_efficientnet()
    assert [
        int(best) in classes for best, classes in zip(network(pictures).argmax(1), PHOTOGRAPHS.values(), strict=True)
    ] == [True] * len(PHOTOGRAPHS)
    features = network.features(pictures)
    assert features.shape == (3, 1280) and float(features.min()) >= 0 and float(features.max()) <= 6


def test_the_frechet_distance_needs_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.measure.quality.FEWEST", 4)
    measure = metric("fid_lite0").load()
    crops = photograph("coffee", 128).unfold(2, 64, 64).unfold(3, 64, 64).flatten(2, 3)[0].permute(1, 0, 2, 3)
    assert measure(crops[:3], crops[:3], []) is None
    assert measure(crops, crops, []) == pytest.approx(0, abs=1e-3)
    assert (measure(noisy(crops, 0.3), crops, []) or 0) > 1


def test_clip_score_is_a_hundred_times_the_cosine() -> None:
    images, texts = (
        torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0]]),
    )
    seen: dict[str, Any] = {}

    def processor(text: Sequence[str], images: Sequence[torch.Tensor], **options: Any) -> dict[str, Any]:
        seen.update(text=text, values=[int(image.max()) for image in images])
        return {}

    pictures = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    score = clip_score(lambda: SimpleNamespace(image_embeds=images, text_embeds=texts), processor, pictures, "abc")
    assert score == pytest.approx(100 * (0.6 + 0 + 0) / 3)
    assert seen == {"text": ["a", "b", "c"], "values": [0, 128, 255]}


def small_clip(folder: Path) -> None:
    """A random CLIP whose words are the letters, saved as the hub saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": len(words) - 1},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=square, crop_size=square), tokenizer).save_pretrained(folder)


def test_a_clip_on_this_disk_is_used_and_none_is_downloaded(tmp_path: Path) -> None:
    small_clip(tmp_path)
    model, processor = load_clip(str(tmp_path))
    pictures = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    score = clip_score(model, processor, pictures, ["a cat on a mat that is too long", "dog"])
    given = processor(
        text=["a cat on a mat that is too long", "dog"], images=[(p * 255).round().byte() for p in pictures],
        return_tensors="pt", padding=True, truncation=True,
    )  # fmt: skip
    with torch.no_grad():
        made = model(**given)
    cosines = made.logits_per_image.diagonal() / model.logit_scale.detach().exp()
    assert score == pytest.approx(float(100 * cosines.clamp(min=0).mean()), abs=1e-3)
    with pytest.raises(StackError, match="nobody/nothing is not on this disk, try hf download nobody/nothing"):
        load_clip("nobody/nothing")


def test_image_reward_is_its_own_package_with_weights_that_are_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: None)
    with pytest.raises(StackError, match="THUDM/ImageReward is not on this disk"):
        load_image_reward()
    for name in prompt_scores.REWARD_FILES:
        (tmp_path / name).write_text("")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(StackError, match="try pip install image-reward"):
        load_image_reward()
    package = ModuleType("ImageReward")
    asked: list[Any] = []
    package.load = lambda *where, **options: (
        asked.append((where, options))
        or SimpleNamespace(  # type: ignore[attr-defined]
            score=lambda prompt, image: len(prompt) + image.getpixel((0, 0))[0]
        )
    )
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[1] = 1
    assert image_reward(load_image_reward(), pictures, ["ab", "abcd"]) == (2 + 4 + 255) / 2
    weights, config = (str(tmp_path / name) for name in prompt_scores.REWARD_FILES)
    assert asked == [((weights,), {"device": "cpu", "med_config": config})]


def test_what_is_missing_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise StackError("no CLIP score: not on this disk")

    monkeypatch.setattr("stack.measure.prompt_scores.load_clip", missing)
    judge = Judge([metric("ms_ssim"), metric("clip_score")])
    assert judge.left_out == {"CLIP score": "no CLIP score: not on this disk"}
    assert [about["name"] for about in judge.about()] == ["psnr_db", "ssim", "ms_ssim"]
    picture = torch.rand(1, 3, 16, 16)
    assert judge(picture, picture, ["a"]) == {"ms_ssim": None}


def test_videos_are_some_frames_each_and_each_has_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("stack.measure.prompt_scores.load_clip", lambda: ("model", "processor"))
    monkeypatch.setattr("stack.measure.prompt_scores.clip_score", lambda *given: asked.append(given) or 1.0)
    clips = torch.arange(16).view(1, 16, 1, 1, 1).expand(2, 16, 3, 2, 2) / 15
    assert metric("clip_score").load()(clips, clips, ["a", "b", "c"]) == 1.0
    (_, _, pictures, prompts), *_ = asked
    assert prompts == ["a"] * 8 + ["b"] * 8
    assert (pictures[:8, 0, 0, 0] * 15).round().tolist() == [0, 2, 4, 6, 9, 11, 13, 15]


def test_the_page_names_every_measure_its_direction_and_its_blind_spot() -> None:
    page = DOCS.read_text()
    for known in METRICS:
        assert f"| {known.title} | {known.better} | {known.blind} |" in page, known.title
