"""What a pipeline makes where its call names no size: the grid of the latent's tokens, and the length of its text.

diffusers has no one place for it: pipelines say pixels in their call's defaults, or pixels, frames or latents among
their attributes, or leave it to the denoiser's configuration. What none of them says is unknown.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .grid import Grid
from .layout import Wiring

SPACE = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
TIME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
CHANNELS = ("latent_channels", "z_dim")  # what configurations of VAEs call the latent's
PIXELS = 3  # channels of a latent without a VAE


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
        if not patch or (len(patch) == 3 and self.pipe is None):
            return ()
        rows, columns = (self._latents(axis, name) // patch[axis] for axis, name in ((-2, "height"), (-1, "width")))
        frames = self._frames() // (patch[-3] if len(patch) == 3 else 1)
        if not (rows and columns):
            return ()
        return (frames, rows, columns) if frames > 1 else (rows, columns)

    def text(self) -> int:
        """Text tokens that attention sees beside the latent's; 0 where there are none, or nothing says how many."""
        seen = len(self.wiring.streams) > 1 or any(one.others for one in self.wiring.attention.values())
        if not seen or self.pipe is None:
            return 0
        known = self._own("tokenizer_max_length"), self.config.get("max_text_seq_length")
        return self._asked("max_sequence_length") or next((count for count in known if isinstance(count, int)), 0)

    def _packed(self) -> tuple[int, ...]:
        """Latent pixels of a token that the pipeline packs: it takes as many times more channels than the VAE has."""
        vae, taken = self._own("vae"), self.config.get("in_channels")
        said = vae.config if vae is not None and isinstance(vae.config, Mapping) else {}
        own = PIXELS if vae is None else next((said[name] for name in CHANNELS if name in said), 0)
        if self.pipe is None or not isinstance(taken, int) or not own or taken % own:
            return ()
        side = math.isqrt(taken // own)
        return (side, side) if side * side * own == taken else ()

    def _latents(self, axis: int, name: str) -> int:
        """Rows or columns of latent pixels; 0 where unknown."""
        if pixels := self._own(f"default_{name}") or self._asked(name):
            return int(pixels) // self._factor(SPACE)
        sizes = (self._own("default_sample_size"), self.config.get(f"sample_{name}"), self.config.get("sample_size"))
        given = next((size for size in sizes if size), 0)
        return int(given[axis] if isinstance(given, list | tuple) else given)

    def _frames(self) -> int:
        """Frames of latents; 1 of a picture."""
        known = self._own("default_num_frames"), self._asked("num_frames"), self.config.get("sample_frames")
        frames = next((count for count in known if count), 1)
        return (frames - 1) // self._factor(TIME) + 1

    def _factor(self, names: tuple[str, ...]) -> int:
        """Pixels, or frames, that one latent stands for."""
        return next((factor for name in names if (factor := self._own(name))), 1)

    def _own(self, name: str) -> Any:
        """An attribute of the pipeline; None where it has none of this name."""
        return None if self.pipe is None else vars(self.pipe).get(name)

    def _asked(self, name: str) -> int:
        """What an argument of the pipeline's call is by default; 0 where there is none of this name, or no number."""
        # A subclass may hand it on unnamed: its parent names it.
        calls = (vars(kind)["__call__"] for kind in type(self.pipe).__mro__ if "__call__" in vars(kind))
        found = (parameter for call in calls if (parameter := inspect.signature(call).parameters.get(name)))
        return next((p.default for p in found if isinstance(p.default, int)), 0)
