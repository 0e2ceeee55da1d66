"""The README's table "your model, what you get", written from the cells that `python -m tests.families` checks."""

from __future__ import annotations

from pathlib import Path

from stack.recipe import list_recipes
from stack.reference.published import published_models

from .columns import COLUMNS
from .page import adapters

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- models: written by python -m tests.families -->\n", "<!-- end of models -->\n"
# What people run most, and the denoiser class it has.
ASKED = {
    "FLUX.1 dev, schnell, Kontext, Fill": "FluxTransformer2DModel",
    "FLUX.2 dev, klein": "Flux2Transformer2DModel",
    "Qwen-Image, Edit, 2512": "QwenImageTransformer2DModel",
    "Z-Image": "ZImageTransformer2DModel",
    "Stable Diffusion 3.5": "SD3Transformer2DModel",
    "Chroma": "ChromaTransformer2DModel",
    "PixArt-Sigma": "PixArtTransformer2DModel",
    "Sana": "SanaTransformer2DModel",
    "Wan 2.1, 2.2": "WanTransformer3DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel",
    "HunyuanVideo 1.5": "HunyuanVideo15Transformer3DModel",
    "LTX-Video": "LTXVideoTransformer3DModel",
    "CogVideoX": "CogVideoXTransformer3DModel",
    "SDXL, SD 1.5": "UNet2DConditionModel",
}
SHOWN = {"quantize": "quantize", "sparse_attn": "sparse attention", "svd": "cache of blocks",
         "predictor-corrector": "cache around the model"}  # fmt: skip


def table() -> str:
    """Rows of markdown."""
    cards, recipes = adapters(), recipes_of()
    has = {column: frozenset(COLUMNS[column].classes()) for column in SHOWN}
    lines = [f"| model | {' | '.join(SHOWN.values())} | few-step adapters | recipes |", "|---" * (len(SHOWN) + 3) + "|"]
    for model, name in ASKED.items():
        cells = ["yes" if name in has[column] else "-" for column in SHOWN]
        named = ", ".join(f"`{one}`" for one in recipes.get(name, ())) or "-"
        lines.append(f"| {model} | {' | '.join(cells)} | {cards[name] or '-'} | {named} |")
    return "\n".join(lines) + "\n"


def recipes_of() -> dict[str, list[str]]:
    """Names of the recipes for real models, by denoiser class."""
    found: dict[str, list[str]] = {}
    published = published_models()
    for recipe in list_recipes():
        if recipe.model in published:
            found.setdefault(published[recipe.model].denoiser, []).append(recipe.name)
    return found


def written(text: str) -> str:
    """The README with this table."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]
