"""What pipelines make by default, against the sizes on their model cards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from stack import Stack
from stack.models.default_size import DefaultSize
from stack.models.derive.wiring import wiring_of
from stack.models.small import small
from stack.reference.published import published

from ..families.pipelines.build import assembled, flow

# Model: channels of its VAE's latents, tokens of its default size, text tokens that attention sees.
KNOWN: dict[str, tuple[int, tuple[int, ...], int]] = {
    "black-forest-labs/FLUX.1-dev": (16, (64, 64), 512),
    "black-forest-labs/FLUX.2-dev": (32, (64, 64), 512),
    "lodestones/Chroma1-HD": (16, (64, 64), 512),
    "Qwen/Qwen-Image": (16, (64, 64), 512),
    "stabilityai/stable-diffusion-3.5-large": (16, (64, 64), 256),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (4, (64, 64), 0),
    "zai-org/CogVideoX-5b": (16, (13, 30, 45), 226),
    "hunyuanvideo-community/HunyuanVideo": (16, (33, 45, 80), 256),
    "Lightricks/LTX-Video": (128, (21, 16, 22), 0),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (16, (21, 30, 52), 0),
}


class Vae(diffusers.ConfigMixin):  # type: ignore[misc]
    """As much of one as is looked at."""

    config_name = "config.json"

    def __init__(self, channels: Any):
        self.register_to_config(latent_channels=channels)


def shrunk(repo: str, channels: int) -> Any:
    """The pipeline over a small denoiser of the same patches and channels, and as much of a VAE as is looked at."""
    model = published(repo)
    pipe = assembled(model.pipeline, transformer=small(getattr(diffusers, model.denoiser), model.full_config).denoiser)
    vars(pipe)["vae"] = Vae(channels)
    return pipe


@pytest.mark.parametrize("repo", KNOWN)
def test_tokens_at_the_default_size(repo: str) -> None:
    channels, grid, text = KNOWN[repo]
    pipe = shrunk(repo, channels)
    size = DefaultSize(pipe, wiring_of(pipe.transformer), pipe.transformer.config)
    assert (size.grid(), size.text()) == (grid, text)


@pytest.mark.parametrize("repo", KNOWN)
def test_numbers_of_a_token_are_those_of_the_model_itself(repo: str) -> None:
    pipe = shrunk(repo, KNOWN[repo][0])
    assert wiring_of(pipe.transformer).numbers[0] == published(repo).numbers_per_token


def test_a_pipeline_of_which_nothing_is_written_by_hand_says_what_its_cache_will_hold() -> None:
    pipe = shrunk("Wan-AI/Wan2.1-T2V-14B-Diffusers", 16)
    pipe.register_modules(scheduler=flow())
    stack = Stack(pipe, steps=20).cache("svd")
    assert stack.facts.image_tokens == 21 * 30 * 52
    assert "MB of state per picture and guidance branch" in stack.explain()


def test_channels_that_no_square_of_latents_gives_are_unknown() -> None:
    pipe = shrunk("black-forest-labs/FLUX.1-dev", 24)
    assert DefaultSize(pipe, wiring_of(pipe.transformer), pipe.transformer.config).grid() == ()


def size_of(
    name: str, transformer: str, vae: Any = None, config: dict[str, Any] | None = None, **own: Any
) -> DefaultSize:
    """Of a pipeline over a small denoiser, with attributes of its own."""
    denoiser = small(getattr(diffusers, transformer), config or {}).denoiser
    pipe = assembled(name, transformer=denoiser)
    vars(pipe).update({"vae": vae, **own})
    return DefaultSize(pipe, wiring_of(denoiser), denoiser.config)


FLUX = ("FluxPipeline", "FluxTransformer2DModel")
WAN = ("WanPipeline", "WanTransformer3DModel")


def test_pipelines_that_count_otherwise() -> None:
    """As each calls its denoiser; () where a number is another one than its name says."""
    assert size_of("MochiPipeline", "MochiTransformer3DModel").grid() == (4, 30, 53)
    assert size_of("SanaVideoPipeline", "SanaVideoTransformer3DModel").grid()[1:] == (30, 52)
    assert size_of("AllegroPipeline", "AllegroTransformer3DModel").grid() == ()
    assert size_of("PRXPipeline", "PRXTransformer2DModel").grid() == ()
    assert size_of("WanVideoToVideoPipeline", "WanTransformer3DModel").grid() == ()
    fill = {"in_channels": 384, "out_channels": 64}
    assert size_of("FluxFillPipeline", FLUX[1], SimpleNamespace(config={"latent_channels": 16}), fill).grid() == (
        64,
        64,
    )
    assert size_of(*FLUX).grid() == (64, 64)  # without a VAE


@pytest.mark.parametrize(
    "own",
    [
        {"default_sample_size": [96]},
        {"default_sample_size": "96"},
        {"vae_scale_factor": (8, 8), "default_height": 512},
        {"vae_scale_factor": None, "default_height": 512},
        {"default_height": -1, "default_sample_size": 0},
    ],
)
def test_attributes_that_are_no_numbers_are_unknown(own: dict[str, Any]) -> None:
    assert size_of(*FLUX, **own).grid() == ()


def test_a_vae_of_any_kind_is_no_error() -> None:
    for vae in (
        SimpleNamespace(),
        SimpleNamespace(config=3),
        SimpleNamespace(config={"latent_channels": [16]}),
        object(),
    ):
        assert size_of(*FLUX, vae).grid() in ((), (64, 64))
    assert (
        size_of(*WAN, vae_scale_factor_spatial=0).grid() == () == size_of(*WAN, vae_scale_factor_temporal=None).grid()
    )
