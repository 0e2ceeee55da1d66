"""Three classes as one reads them in diffusers' own code."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """See `Wiring`; `roles` are of linears by path, `attention` the module that a block's modulated input goes to."""

    name: str
    block_lists: tuple[str, ...]
    streams: list[tuple[str, str]]
    output: str
    inputs: set[str]
    attention: str = "attn"
    others: str = ""
    batched: set[str] = field(default_factory=set)
    makers: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    roles: dict[str, str] = field(default_factory=dict)


BLOCKS = {
    "transformer_blocks.0.attn.to_q": "attention", "transformer_blocks.0.attn.add_k_proj": "attention",
    "transformer_blocks.0.attn.to_add_out": "attention", "transformer_blocks.0.ff.net.0.proj": "mlp",
    "transformer_blocks.0.ff_context.net.2": "mlp", "single_transformer_blocks.0.proj_mlp": "mlp",
    "single_transformer_blocks.0.proj_out": "mlp", "transformer_blocks.0.norm1.linear": "modulation",
    "single_transformer_blocks.0.norm.linear": "modulation", "proj_out": "output projection",
    "norm_out.linear": "output projection",
}  # fmt: skip
FLUX = Known(
    "FluxTransformer2DModel",
    ("transformer_blocks", "single_transformer_blocks"),
    [("text", "encoder_hidden_states"), ("image", "hidden_states")],
    "image",
    {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"},
    others="before",
    batched={"temb"},
    makers={"x_embedder"},
    constants={"pos_embed"},
    unread={"context_embedder", "pos_embed"},
    roles={
        **BLOCKS, "x_embedder": "input projection", "context_embedder": "input projection",
        "time_text_embed.timestep_embedder.linear_1": "time and guidance embedding",
    },
)  # fmt: skip
DIT = Known(
    "DiTTransformer2DModel",
    ("transformer_blocks",),
    [("image", "hidden_states")],
    "image",
    {"hidden_states", "timestep", "class_labels"},
    "attn1",
    batched={"timestep", "class_labels"},
    makers={"pos_embed"},
    roles={
        "transformer_blocks.0.attn1.to_out.0": "attention", "transformer_blocks.0.ff.net.0.proj": "mlp",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "time and guidance embedding",
        "transformer_blocks.0.norm1.linear": "modulation", "proj_out_1": "output projection",
    },
)  # fmt: skip
HUNYUAN_VIDEO = Known(
    "HunyuanVideoTransformer3DModel",
    FLUX.block_lists,
    [("video", "hidden_states"), ("text", "encoder_hidden_states")],
    "video",
    FLUX.inputs | {"guidance", "encoder_attention_mask"},
    others="behind",
    batched={"temb", "attention_mask"},
    makers={"x_embedder"},
    constants={"rope"},
    unread={"context_embedder", "rope"},
    roles={
        **BLOCKS, "context_embedder.proj_in": "input projection",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q": "refiner",
        "context_embedder.time_text_embed.text_embedder.linear_1": "time and guidance embedding",
    },
)  # fmt: skip
KNOWN = (FLUX, DIT, HUNYUAN_VIDEO)
