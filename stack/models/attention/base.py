"""What the families have in common: a call of an attention layer as data, and what is to be known of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...core.readback import reads_are_free

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """What a diffusers attention layer hands to its processor.

    Attributes:
        hidden: (B, N, D) of the image, or of the joint sequence where there is no `text`.
        text: (B, T, D).
        mask: of the scores, True where a query sees a key.
        rotary: cosines and sines of the positions.
    """

    attn: Any
    hidden: torch.Tensor
    text: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    rotary: Any = None

    def made_by(self, processor: Any) -> Any:
        """The same call of a diffusers processor."""
        named = {
            "encoder_hidden_states": self.text,
            "attention_mask": self.mask,
            "image_rotary_emb": self.rotary,
        }
        return processor(self.attn, self.hidden, **{n: value for n, value in named.items() if value is not None})

    @property
    def seen(self) -> torch.Tensor | None:
        """Such a mask as (B, S); None where nothing is hidden, if that is seen without waiting for the device."""
        if self.mask is None or (reads_are_free(self.mask.device) and bool(self.mask.all())):
            return None
        return self.mask[:, 0, 0].expand(len(self.hidden), -1)

    @property
    def hides_keys_only(self) -> bool:
        """Whether the mask is (B, 1, 1, S): the same keys are hidden from every query."""
        mask = self.mask
        return mask is not None and mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1)


@dataclass(frozen=True)
class Family:
    """One family's reading of such a call.

    Attributes:
        is_plain: whether an attention layer is the family's own; one with extras is left alone.
        lengths: (call, text tokens of the denoiser call, None where unknown) to image and text tokens; None where they
            cannot be determined.
        qkv: queries, keys and values (B, S, H, D) of the joint sequence, normalised, positions applied.
        answer: (call, attention output (B, S, H D) of the joint sequence) to what the processor returns.
        text_last: the text lies behind the image in the joint sequence.
        hides_text: a mask over keys hides text alone, and may be followed. Any other mask is left to diffusers.
        dispatches: its processor goes through diffusers' dispatcher, with a backend and context parallelism.
        joins_text: some layers are given the joint sequence, which does not show where the text ends.
    """

    is_plain: Callable[[Any], bool]
    lengths: Callable[[AttentionCall, int | None], tuple[int, int] | None]
    qkv: Callable[[AttentionCall], QKV]
    answer: Callable[[AttentionCall, torch.Tensor], Any]
    text_last: bool = False
    hides_text: bool = False
    dispatches: bool = True
    joins_text: bool = False
