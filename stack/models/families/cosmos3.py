"""Cosmos 3: one packed sequence without a batch axis, a causal text prefix and then the noisy latents."""

import torch

from ..examples.call import Call, counted, listed, number, sequence
from .base import FamilyData


def _shapes(name: str, call: Call) -> list[tuple[int, int, int]]:
    return [(call.frames, call.sizes.rows, call.sizes.columns)] * call.sizes.batch


def _from_text(name: str, call: Call) -> torch.Tensor:
    return torch.arange(call.size("T"), call.size("T") + call.size("B*N"))


COSMOS3 = FamilyData(
    ("Cosmos3OmniTransformer",), video=True,
    unwired="text, video, sound and actions are one sequence without a batch axis: its blocks take tokens (N, D), and "
    "it returns a list for each kind, or None where a call has none of it",
    published={"rope_scaling": {"mrope_section": [4, 2, 2]}},
    arguments={
        "input_ids": counted("T"), "text_indexes": counted("T"),
        "position_ids": lambda name, call: sequence(call).T, "und_len": number("T"), "sequence_length": number("T+B*N"),
        "vision_tokens": listed("1 latent_channel F H W"),
        "vision_token_shapes": _shapes,
        "vision_sequence_indexes": _from_text, "vision_mse_loss_indexes": _from_text,
        "vision_timesteps": lambda name, call: torch.full((call.size("B*N"),), 1000 * call.sizes.noise),
        "vision_noisy_frame_indexes": lambda name, call: [torch.arange(call.frames)] * call.sizes.batch,
    },
)  # fmt: skip
