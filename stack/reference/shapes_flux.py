"""The schedule of `shapes-flux`, and the same model for 128 x 128 pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .pipeline import ShapesFluxPipeline

# FLUX's shifted schedule: mu grows linearly with the number of image tokens (0 at 64, 1.1 at 1,024: shift 1 to 3).
SCHEDULE = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 64,
    "max_image_seq_len": 1024,
    "base_shift": 0.0,
    "max_shift": 1.1,
}
# At 128 x 128 pixels: as above at 1,024 tokens, and twice that shift at 4,096, where the picture has twice the side
# (Esser et al. 2024, equation 23). The line above would make it 101.
LARGE_SCHEDULE = SCHEDULE | {
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "base_shift": 1.1,
    "max_shift": 1.1 + math.log(2),
}
# Factor of all attention logits among 4,096 tokens: a softmax over four times the keys is flatter than the one that the
# weights have learned. The training loss at 128 x 128 pixels is 0.061 with 1, 0.032 with 1.2, 0.030 with 1.3 and 0.032
# with 1.5 (six scenes); of 8 captions 0.83 of what they ask for is drawn with 1, and all of it with 1.3.
SHARPER = 1.3


def new_scheduler(schedule: Mapping[str, Any] = SCHEDULE) -> FlowMatchEulerDiscreteScheduler:
    """The schedule the model is trained for."""
    return FlowMatchEulerDiscreteScheduler(**schedule)


def for_128_pixels(pipe: ShapesFluxPipeline) -> ShapesFluxPipeline:
    """The pipeline with its weights fitted to 4,096 tokens, in place: sharper attention, its own size and schedule.

    Queries are scaled after their norm, which nothing else reads (as Jin et al. 2023, arXiv:2306.08645, scale logits
    by the number of tokens).
    """
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if name.endswith(("norm_q.weight", "norm_added_q.weight")):
                weight.mul_(SHARPER)
    return ShapesFluxPipeline(new_scheduler(LARGE_SCHEDULE), pipe.transformer, pipe.prompt_encoder, size=128)
