"""How good a row's pictures or videos are: against the base's, and read back."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console

from stack.core.errors import StackError
from stack.measure.metrics import psnr, ssim
from stack.measure.perceptual import load_perceptual
from stack.reference.load import REFERENCES, load_reader

from .bench import Bench

Judge = Callable[[torch.Tensor], dict[str, Any]]
FLIPPED = 25.0  # dB: below, a picture has another layout, not a worse one
EVERY = 4  # of a clip's frames are compared by the perceptual distance, which takes 40 ms for each


def frames_of(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) as it is; videos (B, F, 3, H, W) frame by frame."""
    return pictures.flatten(0, 1) if pictures.ndim == 5 else pictures


def likeness(pictures: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """PSNR in dB: the median over pictures, the share below 25 dB, pooled over all, and each picture's own."""
    each = [psnr(picture, target) for picture, target in zip(pictures, reference, strict=True)]
    return {
        "median": median(each),
        "flipped": sum(value < FLIPPED for value in each) / len(each),
        "psnr": psnr(pictures, reference),
        "each": [round(value, 2) for value in each],
    }


def mean_likeness(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    """The mean of the pictures' own PSNRs: what searches here maximise. Medians of a few pictures do not tell two
    candidates apart, and the pooled figure is that of the worst picture."""
    each = [psnr(picture, target) for picture, target in zip(pictures, reference, strict=True)]
    return sum(each) / len(each)


def perceptual_to(reference: torch.Tensor) -> Callable[[torch.Tensor], float | None]:
    """The median perceptual distance of pictures to these; None, said once, where its weights are not installed."""
    try:
        distance = load_perceptual()
    except StackError as error:
        Console().print(str(error), highlight=False)
        return lambda pictures: None

    def seen(pictures: torch.Tensor) -> list[torch.Tensor]:
        return distance.features(frames_of(pictures[:, ::EVERY] if pictures.ndim == 5 else pictures))

    target = seen(reference)
    # A clip's is the mean over its frames.
    return lambda pictures: float(distance.between(seen(pictures), target).view(len(reference), -1).mean(1).median())


def judge_of(bench: Bench, reference: torch.Tensor) -> Judge:
    """A function of pictures of all judged prompts to their figures against the base's."""
    reader, known = load_reader(bench.model), REFERENCES[bench.model]
    right = [known.answers(known.parse(text)) for text in bench.texts]
    perceptual = perceptual_to(reference)

    def judge(pictures: torch.Tensor) -> dict[str, Any]:
        seen = reader.read(pictures * 2 - 1)
        hits = [s[name] == answers[name] for s, answers in zip(seen, right, strict=True) for name in known.asked]
        return {
            **likeness(pictures, reference),
            "perceptual": perceptual(pictures),
            "ssim": ssim(frames_of(pictures), frames_of(reference)),
            "accuracy": sum(hits) / len(hits),
        }

    return judge
