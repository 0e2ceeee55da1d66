"""JoyImage Edit Plus: patches of the image to make and of reference images, one list of shapes a sample."""

from ..examples.call import noise
from .base import FamilyData

JOYIMAGE_PLUS = FamilyData(
    ("JoyImageEditPlusTransformer3DModel",),
    arguments={
        "hidden_states": noise("B N C 1 2 2"),
        "shape_list": lambda name, call: [[(call.frames, call.sizes.rows, call.sizes.columns)]] * call.sizes.batch,
    },
)
