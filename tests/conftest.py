"""Shared models: tiny, untrained, and quick. Nothing here may reach the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stack.cli import main
from stack.reference.pipeline import ShapesFluxPipeline, image_ids
from stack.reference.shapes_flux import new_scheduler
from training.shapes_flux import TRANSFORMER, new_prompt_encoder

# Each of several test processes has its share of the cores.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

PROMPT = "a red ring left of a blue star"
SIZE = 16
RECIPE = 'name = "mine"\nsteps = 14\n[cache]\ninterval = 4\nwarmup = 2\n'


@pytest.fixture(autouse=True)
def _quiet_threads() -> None:
    torch.manual_seed(0)


def tiny_denoiser(double: int = 1, single: int = 1) -> FluxTransformer2DModel:
    """So many double and single blocks, two heads of 64."""
    torch.manual_seed(0)
    small = {"num_layers": double, "num_single_layers": single, "num_attention_heads": 2}
    return FluxTransformer2DModel(**{**TRANSFORMER, **small}).eval()


def tiny_pipe(size: int = SIZE) -> ShapesFluxPipeline:
    """A pipeline around `tiny_denoiser`, 64 image tokens."""
    torch.manual_seed(0)
    pipe = ShapesFluxPipeline(new_scheduler(), tiny_denoiser(), new_prompt_encoder().eval(), size=size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe() -> ShapesFluxPipeline:
    return tiny_pipe()


@pytest.fixture
def denoiser() -> FluxTransformer2DModel:
    return tiny_denoiser()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; gives exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call


@pytest.fixture
def folder(pipe: ShapesFluxPipeline, tmp_path: Path) -> Path:
    """The tiny pipeline as a diffusers folder, and a recipe beside it."""
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path


def picture(run: object, steps: int = 14, prompt: str | list[str] = PROMPT, seed: int = 1) -> torch.Tensor:
    """A picture (B, 3, H, W) of a pipeline or a stack, from a fixed seed."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    assert callable(run)
    return run(prompt, num_inference_steps=steps, generator=generators, output_type="pt").images


def inputs(sigma: float = 0.5, side: int = 8, batch: int = 1) -> dict[str, torch.Tensor]:
    """Arguments for one call of a bare FLUX denoiser of the test's size."""
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(batch, side * side, 12, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 16, 64, generator=generator),
        "pooled_projections": torch.randn(batch, 128, generator=generator),
        "timestep": torch.full((batch,), sigma),
        "img_ids": image_ids(side, side),
        "txt_ids": torch.zeros(16, 3),
    }
