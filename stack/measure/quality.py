"""Every measure of picture quality: which way is better, what it does not see, and what it needs.

Pictures are float (B, 3, H, W) in [0, 1], or videos (B, F, 3, H, W), of which each frame counts as a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import StackError
from .metrics import ms_ssim, psnr, ssim

# Pictures, those of the base, and the prompts: a figure, or None where these pictures have none.
Measure = Callable[[torch.Tensor, torch.Tensor, Sequence[str]], float | None]
FEWEST = 50  # pictures behind a Frechet distance: below it says more about which prompts were drawn
FRAMES = 8  # of a video that a network looks at


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        name: its key in a record.
        title: its name for reading.
        better: "higher" or "lower".
        blind: its blind spot, in one line.
        load: makes the measure; raises StackError where what it needs is not installed or not on this disk.
    """

    name: str
    title: str
    better: str
    blind: str
    load: Callable[[], Measure]


def _perceptual() -> Measure:
    from .perceptual import load_perceptual

    distance = load_perceptual()
    return lambda pictures, reference, prompts: float(distance(_seen(pictures), _seen(reference)).mean())


def _frechet() -> Measure:
    from .efficientnet import load_efficientnet
    from .frechet import fid

    network = load_efficientnet()

    def distance(pictures: torch.Tensor, reference: torch.Tensor, prompts: Sequence[str]) -> float | None:
        some, others = _seen(pictures), _seen(reference)
        return fid(some, others, network.features) if len(pictures) >= FEWEST else None

    return distance


def _clip() -> Measure:
    from .prompt_scores import clip_score, load_clip

    parts = load_clip()
    return lambda pictures, reference, prompts: clip_score(*parts, *_each(pictures, prompts))


def _image_reward() -> Measure:
    from .prompt_scores import image_reward, load_image_reward

    model = load_image_reward()
    return lambda pictures, reference, prompts: image_reward(model, *_each(pictures, prompts))


def _seen(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as they are, of videos some frames each; what is not finite as 0."""
    if pictures.ndim == 5:
        chosen = torch.linspace(0, pictures.shape[1] - 1, min(FRAMES, pictures.shape[1])).round().long()
        pictures = pictures[:, chosen].flatten(0, 1)
    return pictures.nan_to_num().clamp(0, 1).float()


def _each(pictures: torch.Tensor, prompts: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Pictures, and a prompt for each of them."""
    seen, count = _seen(pictures), len(pictures)
    return seen, [prompt for prompt in prompts[:count] for _ in range(len(seen) // count)]


METRICS = (
    Metric(
        "psnr_db", "PSNR, dB", "higher",
        "a shift by one pixel counts as a large error, an even blur as a small one",
        lambda: lambda pictures, reference, prompts: psnr(pictures, reference),
    ),
    Metric(
        "ssim", "SSIM", "higher",
        "looks at windows of 11 pixels: does not see whether the object is the same",
        lambda: lambda pictures, reference, prompts: ssim(pictures, reference),
    ),
    Metric(
        "ms_ssim", "MS-SSIM", "higher",
        "hardly sees colour, and needs pictures of at least 176 pixels a side",
        lambda: lambda pictures, reference, prompts: ms_ssim(pictures, reference),
    ),
    Metric(
        "st_lpips", "shift-tolerant LPIPS", "lower",
        "trained on photographs and their distortions: not on drawings and text",
        _perceptual,
    ),
    Metric(
        "fid_lite0", "FID (EfficientNet-Lite0)", "lower",
        f"compares sets of pictures: needs at least {FEWEST} prompts, and comparable figures have equally many",
        _frechet,
    ),
    Metric(
        "clip_score", "CLIP score", "higher",
        "compares the picture with its prompt instead of the base, and does not see counts and places",
        _clip,
    ),
    Metric(
        "image_reward", "ImageReward", "higher",
        "a model of people's taste: a different, prettier picture scores above the base",
        _image_reward,
    ),
)  # fmt: skip
ALWAYS, FURTHER = METRICS[:2], METRICS[2:]  # PSNR and SSIM have entries of their own in a record


class Judge:
    """The measures beyond PSNR and SSIM that this machine has, loaded once.

    Attributes:
        left_out: why those are missing that are, by title.
    """

    def __init__(self, metrics: Sequence[Metric] = FURTHER) -> None:
        self.left_out: dict[str, str] = {}
        self._loaded: dict[Metric, Measure] = {}
        for metric in metrics:
            try:
                self._loaded[metric] = metric.load()
            except StackError as error:
                self.left_out[metric.title] = str(error)

    def __call__(
        self, pictures: torch.Tensor, reference: torch.Tensor, prompts: Sequence[str]
    ) -> dict[str, float | None]:
        """Every measure's figure by name."""
        return {metric.name: measure(pictures, reference, prompts) for metric, measure in self._loaded.items()}

    def about(self) -> list[dict[str, Any]]:
        """Title, direction and blind spot of PSNR, SSIM and of every measure at hand, for a legend."""
        known = [*ALWAYS, *self._loaded]
        return [{"name": m.name, "title": m.title, "better": m.better, "blind": m.blind} for m in known]
