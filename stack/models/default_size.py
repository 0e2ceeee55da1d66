"""What a pipeline makes where its call names no size: the grid of the latent's tokens, and the length of its text.

diffusers has no one place for it: pipelines say pixels in their call's defaults, or pixels, frames or latents among
their attributes, or leave it to the denoiser's configuration. What none of them says is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import ConfigMixin

from ..core.parameters import parameters_of
from .grid import Grid
from .layout import Wiring

SPACE = (
    "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor", "vae_scale_factor",
)  # fmt: skip
TIME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
CHANNELS = ("latent_channels", "z_dim")  # what configurations of VAEs call the latent's
USUAL = (3, 16, 32)  # channels of pixels, and of VAEs whose latents pipelines pack
PIECES = ("latent_window_size", "num_latent_frames_per_chunk", "segment_frame_length")  # a video made piece by piece
OTHERWISE = ("AllegroPipeline", "PRXPipeline")  # whose attributes of these names count latent frames, or pixels


@dataclass(frozen=True)
class DefaultSize:
    """Reads it off a pipeline and its denoiser.

    Attributes:
        pipe: None for a bare denoiser, whose configuration may say its latents' rows and columns.
        config: of the denoiser.
    """

    pipe: Any | None
    wiring: Wiring
    config: Mapping[str, Any]

    def grid(self) -> Grid:
        """(rows, columns) of the latent's tokens, or (frames, rows, columns); () where nothing says it."""
        patch = self.wiring.patch or self._packed()
        unknown = any(kind.__name__ in OTHERWISE for kind in type(self.pipe).__mro__)
        if not patch or unknown or (len(patch) == 3 and self.pipe is None):
            return ()
        rows, columns = self._latents(-2, "height") // patch[-2], self._latents(-1, "width") // patch[-1]
        frames = self._frames() // (patch[-3] if len(patch) == 3 else 1)
        if not (frames and rows and columns):
            return ()
        return (frames, rows, columns) if frames > 1 else (rows, columns)

    def text(self) -> int:
        """Text tokens that attention sees beside the latent's; 0 where there are none, or nothing says how many."""
        seen = len(self.wiring.streams) > 1 or any(one.others for one in self.wiring.attention.values())
        if not seen or self.pipe is None:
            return 0
        return (
            self._asked("max_sequence_length")
            or self._own("tokenizer_max_length")
            or _count(self.config.get("max_text_seq_length"))
        )

    def _packed(self) -> tuple[int, ...]:
        """Latent pixels of a token that the pipeline packs: it has so many times the channels of the VAE's latent."""
        if self.pipe is None:
            return ()
        vae = self._attribute("vae")
        said: Any = vae.config if isinstance(vae, ConfigMixin) else {}
        known = [_count(said[name]) for name in CHANNELS if name in said]
        for taken in (_count(self.config.get("in_channels")), _count(self.config.get("out_channels"))):
            for own in known[:1] or USUAL:
                side = math.isqrt(taken // own) if own else 0
                if taken and side * side * own == taken:
                    return side, side
        return ()

    def _latents(self, axis: int, name: str) -> int:
        """Rows or columns of latent pixels; 0 where unknown."""
        if pixels := self._own(f"default_{name}") or self._asked(name):
            factor = self._factor(SPACE)
            return pixels // factor if factor else 0
        sizes = (
            self._attribute("default_sample_size"),
            self.config.get(f"sample_{name}"),
            self.config.get("sample_size"),
        )
        given = next((size for size in sizes if size), 0)
        if isinstance(given, list | tuple):
            return _count(given[axis]) if len(given) >= 2 else 0
        return _count(given)

    def _frames(self) -> int:
        """Frames of latents; 1 of a picture, 0 where unknown."""
        takes = parameters_of(type(self.pipe), "__call__")
        frames = (
            self._own("default_num_frames")
            or self._asked("num_frames")
            or self._asked("frames")
            or _count(self.config.get("sample_frames"))
        )
        if not frames:
            return 0 if any("frames" in name or "video" in name for name in takes) else 1
        factor = self._factor(TIME)
        return (frames - 1) // factor + 1 if factor and not any(name in takes for name in PIECES) else 0

    def _factor(self, names: tuple[str, ...]) -> int:
        """Pixels, or frames, that one latent stands for; 1 where the pipeline has none of these names."""
        known = [name for name in names if self.pipe is not None and name in vars(self.pipe)]
        return self._own(known[0]) if known else 1

    def _attribute(self, name: str) -> Any:
        """None where the pipeline has none of this name."""
        return None if self.pipe is None else vars(self.pipe).get(name)

    def _own(self, name: str) -> int:
        """An attribute of the pipeline; 0 where it has none of this name, or no number."""
        return _count(self._attribute(name))

    def _asked(self, name: str) -> int:
        """What an argument of the pipeline's call is by default; 0 where there is none of this name, or no number."""
        parameters = parameters_of(type(self.pipe), "__call__")
        return _count(parameters[name].default) if name in parameters else 0


def _count(value: Any) -> int:
    """A number of things; 0 for whatever is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
