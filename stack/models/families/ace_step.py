"""ACE-Step: audio latents in patches, with the source's latents and masks beside them."""

from ..examples.call import level, noise
from .base import FamilyData

ACE_STEP = FamilyData(
    ("AceStepTransformer1DModel",), time_scale=1.0,
    arguments={
        "hidden_states": noise("B N*P audio_acoustic_hidden_dim"),
        "context_latents": noise("B N*P 2*audio_acoustic_hidden_dim"),
        "encoder_hidden_states": noise("B T hidden_size"), "timestep_r": level,
    },
)  # fmt: skip
