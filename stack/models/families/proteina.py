"""Proteina: residues instead of pixels, coordinates and latents of each, and a time for both."""

import torch

from ..examples.call import Call, filled, level, noise, whole
from .base import FamilyData


def _kinds(name: str, call: Call) -> dict[str, torch.Tensor]:
    """All residues are to be made, and all have latents."""
    shape = call.shape("B N")
    return {"is_in_context_conditioning": torch.zeros(shape), "supports_local_latent": torch.ones(shape)}


PROTEINA = FamilyData(
    ("RFD4ProteinaTransformer",), time_scale=1.0,
    config={  # the other features are annotations of a molecule
        "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"), "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
    },
    arguments={
        "bb_ca": noise("B N 3"), "local_latents": noise("B N latent_dim"), "bb_ca_time": level,
        "local_latents_time": level,
        "padding_mask": filled("B N", 1, torch.bool), "conditioning": _kinds,
        "token_type": whole("B N", "num_token_types"),
    },
)  # fmt: skip
