"""FLUX.1: a bare denoiser is taken for one of rectified flow."""

from .base import FamilyData

FLUX = FamilyData(("FluxTransformer2DModel",), flow_scale=1.0)
