"""MiniMax-H3: text, video and audio in one packed sequence, whose layout all samples share."""

import torch

from ..examples.call import Call, Rule, noise, sequence
from .base import FamilyData


def _tags(name: str, call: Call) -> torch.Tensor:
    """(T + N + A,): 1 for text, 0 for video, 2 for audio, in this order."""
    return torch.repeat_interleave(torch.tensor([1, 0, 2]), torch.tensor([call.size(word) for word in "TNA"]))


def _rows(tag: int) -> Rule:
    """Numbers of the rows with this tag."""
    return lambda name, call: (_tags(name, call) == tag).nonzero()[:, 0]


def _places(name: str, call: Call) -> torch.Tensor:
    """(T + N + A, 3)."""
    audio = torch.arange(call.size("A")).float()
    return torch.cat([sequence(call), audio[:, None].expand(-1, 3)])


MINIMAX_H3 = FamilyData(
    ("MiniMaxH3Transformer3DModel",), time_scale=1.0,
    config={"rope_freq_dim": 2, "time_embed_hidden_dim": 48},
    arguments={
        "hidden_states": noise("B N C*P"), "audio_hidden_states": noise("B A audio_in_channels"),
        "timestep": lambda name, call: torch.tensor([call.sizes.noise]),
        "timestep_indices": lambda name, call: torch.zeros(call.size("T+N+A"), dtype=torch.long),
        "position_ids": _places,
        "token_tags": _tags, "text_indices": _rows(1), "video_indices": _rows(0), "audio_indices": _rows(2),
    },
)  # fmt: skip
