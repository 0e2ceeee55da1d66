"""EasyAnimate: has no defaults for its channels."""

from .base import FamilyData

EASYANIMATE = FamilyData(
    ("EasyAnimateTransformer3DModel",), published={"in_channels": 16, "out_channels": 16, "patch_size": 2}
)
