"""From the configuration of a denoiser to one of the same class, a few layers deep and 32 wide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...core.parameters import parameters_of

HEADS, HEAD_WIDTH, WIDTH = 2, 16, 32
OTHER_WIDTH, MLP_WIDTH, TEXT_WIDTH, POOLED_WIDTH, VOCABULARY = 48, 64, 40, 28, 97
AXES = {1: (16,), 2: (8, 8), 3: (4, 6, 6), 4: (4, 4, 4, 4)}

_INNER = ("hidden_size", "dim", "model_dim", "embed_dim", "dit_dim", "token_dim")
_KEPT = re.compile(r"^(sample_|pos_embed|max_|base_|rope_|projection_class)|(max_seq|seq_len|_length)")
_SIZE = re.compile(r"(dim|dims|dim2|dim_t5|dim_a|size|channels|width|dim_out|dim_in|num_embeddings)$")


def defaults(cls: type) -> dict[str, Any]:
    """The configuration that the class has when nothing is given; None for what has no default."""
    entries = parameters_of(cls, "__init__")
    return {name: None if entry.default is entry.empty else entry.default for name, entry in entries.items()}


def shrunk(full: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with 3 blocks in the main lists, 2 in the others, 2 heads of 16, and small widths.

    Entries that say how the model computes (flags, kinds of norms, patch sizes, channels of the latent) stay. Widths
    that were equal to heads times head width stay equal to it, others become other than it.
    """
    small = dict(full)
    heads = next((value for name, value in full.items() if _is_heads(name, value)), 0)
    head = next((full[name] for name in full if name.endswith("head_dim") and isinstance(full[name], int)), 0)
    outer = next((full[name] for name in _INNER if isinstance(full.get(name), int)), 0)
    inner = heads * head or outer
    head = head or (inner // heads if heads else 0)
    layers = next((full[name] for name in ("num_layers", "n_layers") if full.get(name)), 3)
    for name, value in full.items():
        if isinstance(value, bool) or value is None or isinstance(value, str | float):
            continue
        if isinstance(value, list | tuple):
            small[name] = _list(name, value, head, layers)
        elif _is_heads(name, value):
            small[name] = 1 if value < heads and re.search("kv|key_value", name) else HEADS
        elif name.endswith(("head_dim", "dim_head")):
            small[name] = HEAD_WIDTH
        elif name in _INNER:
            small[name] = WIDTH if value == inner else OTHER_WIDTH
        elif _is_depth(name) and value > 0:
            small[name] = 2 if re.search("single|refiner|text|perceiver|approx|LFE", name) else 3
        elif name == "num_experts":
            small[name] = min(value, 4)
        else:
            small[name] = _width(name, value, inner)
    small.update({name: 4 for name in ("in_channels",) if name in full and full[name] is None})
    small.update({name: 2 for name in ("patch_size",) if name in full and full[name] is None})
    return _levels(small) if isinstance(full.get("block_out_channels"), list | tuple) else small


def _is_heads(name: str, value: object) -> bool:
    return name.endswith("heads") and isinstance(value, int) and not isinstance(value, bool)


def _is_depth(name: str) -> bool:
    return bool(re.search(r"(layers|blocks|depth|mmdit_layers)$", name)) and "inject" not in name


def _width(name: str, value: int, inner: int) -> int:
    if not _SIZE.search(name) or _KEPT.search(name):
        return value
    if value == inner:
        return WIDTH
    if value <= 256:
        return value
    if re.search("ff|intermediate|mlp|inner|moe", name):
        return MLP_WIDTH
    if re.search("vocab|codebook|num_emb", name):
        return VOCABULARY
    return POOLED_WIDTH if "pool" in name else TEXT_WIDTH


def _list(name: str, value: list[Any] | tuple[Any, ...], head: int, layers: int) -> list[Any] | tuple[Any, ...]:
    """Axes of rotary tables add up to the head's width; lists of layer numbers name the same share of the layers."""
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    if not value or not whole:
        return value
    if re.search("axes|rope_dim", name) and "len" not in name and (not head or sum(value) == head):
        return type(value)(AXES[len(value)])
    if re.search("layers|layer_ids", name):
        return type(value)(range(min(3, max(1, round(3 * len(value) / layers)))))
    if _SIZE.search(name) and name != "block_out_channels":
        return type(value)([_width(name, entry, 0) for entry in value])
    return value


def _levels(config: dict[str, Any]) -> dict[str, Any]:
    """A U-Net's first and last level, one layer each."""
    count = len(config["block_out_channels"])
    cut = {
        name: (value[0], value[-1])
        for name, value in config.items()
        if isinstance(value, list | tuple) and len(value) == count > 2
    }
    fixed = {
        "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 4, "groups": 4,
        "attention_head_dim": 8, "num_attention_heads": 2,
    }  # fmt: skip
    given = {name for name, value in config.items() if isinstance(value, int | tuple | list)}
    return config | cut | {name: value for name, value in fixed.items() if name in given}
