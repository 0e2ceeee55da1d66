"""HunyuanVideo: a bare denoiser is taken for one of rectified flow."""

from .base import FamilyData

HUNYUAN_VIDEO = FamilyData(("HunyuanVideoTransformer3DModel",), flow_scale=1000.0)
