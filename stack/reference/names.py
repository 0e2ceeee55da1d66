"""Names of the reference models, and which of them ship. Nothing heavy is imported: lists are printed at once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

DESCRIPTIONS = {
    "shapes-flux": "FluxTransformer2DModel on drawn scenes: rectified flow, captions, 64 x 64 pixels, 1,024 tokens",
    "shapes-flux-128": "shapes-flux for 128 x 128 pixels, 4,096 tokens: the same weights, attention sharpened",
    "shapes-dit": "DiTTransformer2DModel on drawn shapes: DDIM, 30 classes, guidance, 32 x 32 pixels, 256 tokens",
    "shapes-video": (
        "HunyuanVideoTransformer3DModel on drawn clips: rectified flow, captions, "
        "8 frames of 32 x 32 pixels, 1,024 tokens"
    ),
}
SHARED = {"shapes-flux-128": "shapes-flux"}  # whose weights a model has that has none of its own


def weights_folder() -> Path:
    """Where the shipped checkpoints are."""
    return Path(str(resources.files("stack.reference"))) / "weights"


def folder_of(name: str) -> Path:
    """Where the weights of a reference model are, or would be."""
    return weights_folder() / SHARED.get(name, name)


# Those whose weights are here. The others can be trained, not loaded.
MODELS = {name: words for name, words in DESCRIPTIONS.items() if folder_of(name).is_dir()}


def list_models() -> dict[str, str]:
    """The models that ship, by name, each with what it is."""
    return dict(MODELS)
