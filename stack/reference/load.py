"""The shipped models, ready to use."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from ..errors import choose
from .classifier import SceneClassifier
from .pipeline import ShapesFluxPipeline

MODELS = {
    "shapes-flux": "FluxTransformer2DModel on drawn scenes: rectified flow, captions, 64 x 64 pixels, 1,024 tokens",
}


def weights_folder() -> Path:
    """Where the shipped checkpoints are."""
    return Path(str(resources.files("stack.reference"))) / "weights"


def load(name: str, dtype: torch.dtype = torch.float32) -> ShapesFluxPipeline:
    """A reference model as a diffusers pipeline on the CPU.

    Raises:
        StackError: unknown name.
    """
    if name not in MODELS:
        raise choose("reference model", name, list(MODELS))
    pipe = ShapesFluxPipeline.from_pretrained(weights_folder() / name, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_classifier() -> SceneClassifier:
    """The reader that names what a picture shows, on the CPU in fp32."""
    return SceneClassifier.from_pretrained(weights_folder() / "reader").eval()
