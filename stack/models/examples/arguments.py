"""What the arguments of denoisers look like, by name: the same in most of diffusers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .call import Call, Rule, filled, grid, level, listed, noise, number, where, whole

TEXT_WIDTH = (
    "joint_attention_dim|text_embed_dim|text_dim|in_text_dim|caption_channels|cap_feat_dim|text_in_dim|context_in_dim|"
    "text_hidden_dim|llm_features_dim|encoder_hidden_states_channels|encoder_hidden_size|dit_text_dim|condition_dim|"
    "cross_attention_dim"
)


def _axes(call: Call) -> int:
    names = ("axes_dims_rope", "axes_dims", "rope_axes_dim", "axes_dim_rope")
    return next((len(call.config[name]) for name in names if call.config.get(name)), 3)


def _text_ids(name: str, call: Call) -> torch.Tensor:
    """(T, axes): zeros, and the token's number on the fourth axis where there is one."""
    ids = torch.zeros(call.sizes.text, _axes(call))
    if ids.shape[1] > 3:
        ids[:, 3] = torch.arange(call.sizes.text)
    return ids


def _image_shapes(name: str, call: Call) -> list[list[tuple[int, int, int]]]:
    """(frames, rows, columns) in tokens of every image of every sample."""
    return [[(1, call.sizes.rows, call.sizes.columns)]] * call.sizes.batch


def _image_features(name: str, call: Call) -> torch.Tensor:
    """(B, 3, width); two of them a sample, as long as the positions, where first and last frame are given."""
    positions = call.config.get("pos_embed_seq_len")
    rule = noise(f"B 2*{positions // 2} image_dim" if positions else "B 3 image_dim")
    features: torch.Tensor = rule(name, call)
    return features.unflatten(1, (2, -1)).flatten(0, 1) if positions else features


_IMAGE = tuple(noise(shape) for shape in ("B C H W", "B N C", "B C N"))
_VIDEO = tuple(noise(shape) for shape in ("B C F H W", "B N C", "B F C H W"))
_TIME = (level,)
_TEXT = (noise(f"B T {TEXT_WIDTH}"),)
_MASK = tuple(filled("B T", 1, dtype) for dtype in (torch.bool, torch.int64, torch.float32))

ARGUMENTS: Mapping[str, tuple[Rule, ...]] = {
    "x": (listed("C F H W"),),
    "timestep": _TIME,
    "timesteps": _TIME,
    "t": _TIME,
    "timestep_r": (where("use_meanflow", level),),
    "r_timestep": _TIME,
    "encoder_hidden_states": _TEXT,
    "cap_feats": (listed(f"T {TEXT_WIDTH}"),),
    "encoder_attention_mask": _MASK,
    "encoder_hidden_states_mask": _MASK,
    "encoder_hidden_states_2": (where("text_embed_2_dim", noise("B T text_embed_2_dim")),),
    "encoder_attention_mask_2": (where("text_embed_2_dim", filled("B T", 1, torch.bool)),),
    "pooled_projections": (where("pooled_projection_dim", noise("B pooled_projection_dim")),),
    "encoder_hidden_states_image": (where("image_dim", _image_features),),
    "additional_t_cond": (where("use_additional_t_cond", filled("B", 0, torch.int64)),),
    "target_timestep": (where("flow_map", level),),
    "ofs": (where("ofs_embed_dim", filled("1", 2.0)),),
    "image_embeds": (where("image_embed_dim", noise("B 3 image_embed_dim")),),
    "guidance": (where("guidance_embeds", filled("B", 3.5)),),
    "img_ids": (lambda name, call: grid(call, _axes(call)),),
    "txt_ids": (_text_ids,),
    "img_shapes": (_image_shapes,),
    "class_labels": (where("num_embeds_ada_norm", whole("B", "num_embeds_ada_norm")),),
    "num_frames": (number("F"),),
    "height": (number("H"),),
    "width": (number("W"),),
    "original_size": (filled("B 2", 64.0),),
    "target_size": (filled("B 2", 64.0),),
    "crop_coords": (filled("B 2", 0.0),),
}
"""Argument to the rules that are tried for it, in this order."""


def rules_for(parameters: Mapping[str, Any], given: Mapping[str, Rule], video: bool) -> dict[str, tuple[Rule, ...]]:
    """The rules to try for each argument that the class takes and somebody knows."""
    latent = _VIDEO if video else _IMAGE
    every = {**ARGUMENTS, "hidden_states": latent, "sample": latent}
    known = {name: rules for name, rules in every.items() if name in parameters}
    if "sample" in parameters:  # the pipelines of U-Nets give no mask
        known.pop("encoder_attention_mask", None)
    return known | {name: (rule,) for name, rule in given.items() if name in parameters}
