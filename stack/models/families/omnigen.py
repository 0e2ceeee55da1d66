"""OmniGen: text ids, time and image in the sequence of a language model, with its mask and places."""

from ..examples.call import always, counted, filled, whole
from .base import FamilyData

OMNIGEN = FamilyData(
    ("OmniGenTransformer2DModel",), time_scale=1.0,
    config={"pad_token_id": 0, "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    arguments={
        "input_ids": whole("B T", "vocab_size"), "input_img_latents": always([]), "input_image_sizes": always({}),
        "attention_mask": filled("B T+1+N T+1+N", 1.0), "position_ids": counted("B T+1+N"),
    },
)  # fmt: skip
