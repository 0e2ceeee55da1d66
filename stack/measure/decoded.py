"""What no good picture is, looked for in what a pipeline returns: per-step checks do not see what the decoder makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from ..core.readback import reads_are_free

LEVEL = 0.999 / 255  # of a picture in 8 bits, rounding allowed for
CLIPPED = 0.999  # share of values at either end of the range
LOOKED_AT = 5  # frames of a video, from its first to its last


def picture_faults(result: Any) -> list[str]:
    """What is wrong with the pictures or videos of a pipeline call, a line each; nothing for good ones.

    A picture that holds NaN or infinity, is of one single colour, or is black and full colour only. Of a video all
    frames that are looked at have to be so: it may begin in black. Latents are only checked for NaN and infinity.

    Args:
        result: what the pipeline returned. Its first entry is looked at where it is images, arrays, or tensors that can
            be read without waiting for a device; anything else is passed over.
    """
    made = result[0] if isinstance(result, (tuple, BaseOutput)) and len(result) else None
    samples: Any = made if isinstance(made, (list, np.ndarray, torch.Tensor)) else ()
    faults = [(number, _fault(sample)) for number, sample in enumerate(samples)]
    return [f"picture {number} {fault}" for number, fault in faults if fault]


def _fault(sample: Any) -> str:
    if isinstance(sample, Image.Image):
        return _of_frames([_drawn(sample)])
    if isinstance(sample, list) and sample and all(isinstance(frame, Image.Image) for frame in sample):
        return _of_frames([_drawn(sample[place]) for place in _some(len(sample))])
    if isinstance(sample, torch.Tensor) and reads_are_free(sample.device) and sample.ndim >= 3:
        frames = sample.detach().float().reshape(-1, *sample.shape[-3:]).numpy()
        return _of_frames([_numbers(frames[place], (1, 2)) for place in _some(len(frames))])
    if isinstance(sample, np.ndarray) and sample.ndim >= 3:
        frames = sample.reshape(-1, *sample.shape[-3:])
        return _of_frames([_numbers(frames[place], (0, 1)) for place in _some(len(frames))])
    return ""


def _some(frames: int) -> list[int]:
    """Some of so many frames, the first and the last among them."""
    return [int(place) for place in np.linspace(0, frames - 1, min(LOOKED_AT, frames)).round()]


@dataclass(frozen=True)
class _Frame:
    """Least and largest value of each channel, and what counts the share of values that are 0 or full."""

    low: np.ndarray
    high: np.ndarray
    clipped: Callable[[], float]


def _drawn(image: Image.Image) -> _Frame:
    """Of an image, without making floats of it: a few ms for a million pixels."""
    picture = image.convert("RGB")
    low, high = np.array(picture.getextrema(), dtype=np.float32).T / 255

    def clipped() -> float:
        counts = np.array(picture.histogram()).reshape(3, 256)
        return float((counts[:, 0] + counts[:, 255]).sum() / counts.sum())

    return _Frame(low, high, clipped)


def _numbers(frame: np.ndarray, plane: tuple[int, int]) -> _Frame:
    """Of an array with height and width along the axes `plane`."""

    def clipped() -> float:
        return float(((frame < LEVEL / 2) | (frame > 1 - LEVEL / 2)).mean())

    return _Frame(frame.min(plane), frame.max(plane), clipped)


def _of_frames(frames: Sequence[_Frame]) -> str:
    """What is wrong with all of these frames, with values in [0, 1] or a latent's."""
    low, high = min(frame.low.min() for frame in frames), max(frame.high.max() for frame in frames)
    if not all(np.isfinite(frame.low + frame.high).all() for frame in frames):
        return "holds NaN or infinity"
    if low < -LEVEL or high > 1 + LEVEL:
        return ""  # no picture but a latent
    if all((frame.high - frame.low < LEVEL).all() for frame in frames):
        return "is black" if high < LEVEL else "is one single colour"
    # A good picture rarely has both ends of the range: its values are counted only then.
    if low < LEVEL / 2 and high > 1 - LEVEL / 2 and all(frame.clipped() >= CLIPPED for frame in frames):
        return "is saturated: its values are 0 or full only"
    return ""
