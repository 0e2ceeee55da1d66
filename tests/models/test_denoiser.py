"""From a pipeline to its transformer, with the true reason where there is none."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DDIMScheduler, DDPMPipeline, ModularPipeline, UNet2DModel
from torch import nn

from stack import Stack, StackError
from stack.models.denoiser import denoiser_of

from ..conftest import tiny_pipe


class Renamed(type(tiny_pipe())):  # type: ignore[misc]
    """A pipeline whose constructor does not name its parts."""

    def __init__(self, **parts: Any):
        super().__init__(**parts)


def emptied() -> Any:
    pipe = tiny_pipe()
    pipe.register_modules(transformer=None)
    return pipe


def with_a_unet() -> Any:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    return DDPMPipeline(unet, DDIMScheduler())


REFUSED = {
    "emptied": (emptied, "the transformer of this ShapesFluxPipeline is None: load the pipeline with it, or set"),
    "modular": (
        lambda: object.__new__(ModularPipeline),
        "ModularPipeline has no transformer and no unet: expected a pipeline of a diffusion model",
    ),
    "a module": (lambda: nn.Linear(2, 2), "cannot accelerate a Linear: expected a denoiser of diffusers, or a"),
    "a number": (lambda: 3, "cannot accelerate a int: expected a diffusers pipeline or its transformer module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_true(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(StackError) as error:
        Stack(make())
    assert message in str(error.value)


def test_a_pipeline_that_does_not_name_its_parts_is_taken() -> None:
    pipe = tiny_pipe()
    renamed = Renamed(transformer=pipe.transformer, scheduler=pipe.scheduler, prompt_encoder=pipe.prompt_encoder)
    assert denoiser_of(renamed) is pipe.transformer


def test_the_unet_of_a_pipeline_is_its_denoiser() -> None:
    pipe = with_a_unet()
    assert denoiser_of(pipe) is pipe.unet
