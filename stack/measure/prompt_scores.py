"""How well pictures fit their prompts: CLIP score and ImageReward, where their weights are on this disk.

Nothing is downloaded. Pictures are float (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import StackError

CLIP = "openai/clip-vit-large-patch14"
REWARD, REWARD_FILES = "THUDM/ImageReward", ("ImageReward.pt", "med_config.json")


def load_clip(name: str = CLIP) -> tuple[Any, Any]:
    """CLIP's model and processor, from the hub's cache on this disk or from a folder.

    Raises:
        StackError: they are not there.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(name, local_files_only=True)
        return model.eval(), CLIPProcessor.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        raise StackError(f"no CLIP score: {name} is not on this disk, try hf download {name}") from None


@torch.no_grad()
def clip_score(model: Any, processor: Any, pictures: torch.Tensor, prompts: Sequence[str]) -> float:
    """100 max(0, cosine) of the embeddings of picture and prompt (Hessel et al. 2021, arXiv:2104.08718), mean."""
    images = [(picture * 255).round().byte() for picture in pictures]
    given = processor(text=list(prompts), images=images, return_tensors="pt", padding=True, truncation=True)
    made = model(**given)
    pairs = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
    return float(100 * pairs.clamp(min=0).mean())


def load_image_reward() -> Any:
    """ImageReward (Xu et al. 2023, arXiv:2304.05977): its own package with weights from the hub's cache on this disk.

    Raises:
        StackError: package or weights are not there.
    """
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(REWARD, name) for name in REWARD_FILES]
    if not all(isinstance(path, str) and Path(path).is_file() for path in found):
        raise StackError(f"no ImageReward: {REWARD} is not on this disk, try hf download {REWARD}")
    try:
        import ImageReward
    except ImportError:
        raise StackError("no ImageReward: only its weights are here, try pip install image-reward") from None
    return ImageReward.load(found[0], device="cpu", med_config=found[1])


@torch.no_grad()
def image_reward(model: Any, pictures: torch.Tensor, prompts: Sequence[str]) -> float:
    """Mean reward of the pictures for their prompts: about -2.3 to 2.3, as published."""
    from PIL import Image

    images = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]
    return sum(float(model.score(prompt, image)) for prompt, image in zip(prompts, images, strict=True)) / len(images)
