"""How good a row's pictures or videos are: against the base's, and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stack.measure.metrics import psnr, ssim
from stack.reference.load import REFERENCES, load_reader

from .bench import Bench

Judge = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], dict[str, Any]]


def frames_of(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) as it is; videos (B, F, 3, H, W) frame by frame."""
    return pictures.flatten(0, 1) if pictures.ndim == 5 else pictures


def judge_of(bench: Bench) -> Judge:
    """A function of pictures, reference pictures and their prompts' numbers, to PSNR, SSIM and accuracy."""
    reader, known = load_reader(bench.model), REFERENCES[bench.model]
    right = [known.answers(known.parse(text)) for text in bench.texts]

    def judge(pictures: torch.Tensor, reference: torch.Tensor, which: Sequence[int]) -> dict[str, Any]:
        seen = reader.read(pictures * 2 - 1)
        hits = [s[name] == right[i][name] for s, i in zip(seen, which, strict=True) for name in known.asked]
        return {
            "psnr": psnr(pictures, reference),
            "ssim": ssim(frames_of(pictures), frames_of(reference)),
            "accuracy": sum(hits) / len(hits),
        }

    return judge
