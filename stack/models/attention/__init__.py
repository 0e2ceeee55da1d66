"""How the attention of each diffusers family is read: its queries, keys, values, and the order of its tokens."""

from .base import AttentionCall, Family
from .dit import DIT
from .flux import FLUX
from .hunyuan_video import HUNYUAN_VIDEO

FAMILIES: dict[str, Family] = {"flux": FLUX, "dit": DIT, "hunyuan-video": HUNYUAN_VIDEO}

__all__ = ["DIT", "FAMILIES", "FLUX", "HUNYUAN_VIDEO", "AttentionCall", "Family"]
