"""CogVideoX: rotary tables come from the pipeline; models without them take padded text only."""

from ..examples.call import Call, noise, rotary, where
from .base import FamilyData

_ROTARY = "use_rotary_positional_embeddings"

_FACE = "is_train_face"


def _face(name: str, call: Call) -> list[object]:
    """One (B, 7, width) for each scale of the face's features."""
    return [noise("B 7 LFE_vit_dim")(f"{name} {scale}", call) for scale in range(call.size("LFE_num_scale"))]


COGVIDEOX = FamilyData(
    ("CogVideoXTransformer3DModel",),
    published={_ROTARY: True},
    config={"use_learned_positional_embeddings": False},  # learned ones allow one size only
    arguments={
        "hidden_states": noise("B F C H W"), "image_rotary_emb": where(_ROTARY, rotary("N attention_head_dim")),
        "encoder_hidden_states": where(
            _ROTARY, noise("B T text_embed_dim"), noise("B max_text_seq_length text_embed_dim")
        ),
    },
)  # fmt: skip
CONSISID = FamilyData(
    ("ConsisIDTransformer3DModel",),
    published={_ROTARY: True, _FACE: True},
    config={  # faces are read at two thirds of the width
        "num_layers": 4, "num_attention_heads": 3, "LFE_output_dim": 32, "LFE_num_scale": 2, "LFE_depth": 2,
        "LFE_num_querie": 4, "use_learned_positional_embeddings": False,
    },
    arguments={
        **COGVIDEOX.arguments, "id_cond": where(_FACE, noise("B LFE_id_dim")), "id_vit_hidden": where(_FACE, _face),
    },
)  # fmt: skip
