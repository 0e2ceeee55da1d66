"""The untrained model `shapes-dit`: its sizes and its schedule."""

from __future__ import annotations

from diffusers import DDIMScheduler, DiTTransformer2DModel

from stack.reference.classes import CLASSES

SIZE = 32  # pixels
# 4.6 M parameters: as wide as shapes-flux, so that a figure for one can be held against the other. Two fifths of them
# embed time and class and modulate, once per picture; every block does that by itself, as diffusers' DiT has it.
TRANSFORMER = {
    "sample_size": SIZE,
    "patch_size": 2,
    "in_channels": 3,
    "out_channels": 3,
    "num_layers": 6,
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_embeds_ada_norm": len(CLASSES),
}
# The cosine schedule (Nichol & Dhariwal 2021) wastes no steps on a canvas this small. The model predicts the velocity
# (Salimans & Ho 2022), which means something at pure noise too, where "trailing" steps begin (Lin et al. 2024).
SCHEDULE = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def new_transformer() -> DiTTransformer2DModel:
    """An untrained denoiser of the reference size."""
    return DiTTransformer2DModel(**TRANSFORMER)


def new_scheduler() -> DDIMScheduler:
    """The schedule the model is trained for."""
    return DDIMScheduler(**SCHEDULE)
