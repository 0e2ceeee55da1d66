"""Wirings of the classes that the models which ship are of."""

from __future__ import annotations

from diffusers import DiTTransformer2DModel, HunyuanVideoTransformer3DModel

from stack.models.derive.wiring import wiring_of, wiring_of_class

from .conftest import tiny_denoiser

FLUX = wiring_of(tiny_denoiser())
DIT = wiring_of_class(DiTTransformer2DModel)
HUNYUAN_VIDEO = wiring_of_class(HunyuanVideoTransformer3DModel)
WIRINGS = {wiring.family: wiring for wiring in (FLUX, DIT, HUNYUAN_VIDEO)}
