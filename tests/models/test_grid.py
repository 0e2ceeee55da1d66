"""The grid of the tokens: known beforehand at the default size, read from every request's own call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.memory import state_size
from stack.caching.methods import PRESETS
from stack.core.errors import StackError
from stack.model_facts import facts_of
from stack.models.derive.wiring import wiring_of
from stack.models.grid import Grid, RequestGrid
from stack.reference.pipeline import image_ids

from ..conftest import inputs, tiny_denoiser, tiny_pipe
from ..wirings import DIT, FLUX
from .test_dit import tiny as tiny_dit
from .test_hunyuan_video import tiny_denoiser as tiny_video


def published_ids(rows: int, columns: int, first: float = 0.0) -> torch.Tensor:
    """What diffusers' FLUX pipelines hand over, and Kontext's first number for a picture given as a condition."""
    ids = FluxPipeline._prepare_latent_image_ids(1, rows, columns, torch.device("cpu"), torch.float32)
    ids[:, 0] = first
    return ids


def flux_grid(ids: torch.Tensor) -> Grid:
    return FLUX.grid(None, {"img_ids": ids})


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (64, 48), (1, 7), (7, 1), (1, 1), (33, 33)])
@pytest.mark.parametrize("ids", [published_ids, image_ids])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_counts_places_in_whatever_unit(rows: int, columns: int, ids: Any, dtype: torch.dtype) -> None:
    assert flux_grid(ids(rows, columns).to(dtype)) == (rows, columns)
    assert flux_grid(ids(rows, columns).to(dtype)[None]) == (rows, columns)


def test_a_picture_beside_its_condition_is_a_grid_only_where_both_are_alike() -> None:
    assert flux_grid(torch.cat([published_ids(4, 6), published_ids(4, 6, 1.0)])) == (2, 4, 6)
    assert flux_grid(torch.cat([published_ids(4, 6), published_ids(2, 12, 1.0)])) == ()
    assert flux_grid(torch.cat([published_ids(4, 6), published_ids(8, 8, 1.0)])) == ()


def test_tokens_in_another_order_are_on_no_grid() -> None:
    ids = published_ids(4, 6)
    assert flux_grid(ids.flip(0)) == flux_grid(ids[:-1]) == ()
    assert flux_grid(ids.unflatten(0, (4, 6)).transpose(0, 1).flatten(0, 1)) == ()


def test_patches_are_counted_in_space_and_time() -> None:
    assert DIT.grid(tiny_dit().transformer, {"hidden_states": torch.zeros(2, 3, 8, 12)}) == (4, 6)
    # Patches of 2 x 4 x 4.
    video = tiny_video()
    assert wiring_of(video).grid(video, {"hidden_states": torch.zeros(1, 3, 6, 16, 8)}) == (3, 4, 2)


def test_the_default_size_is_a_fact() -> None:
    pipe, dit = tiny_pipe(), tiny_dit()
    assert facts_of(pipe.transformer, FLUX, pipe, 50).grid == (8, 8)
    assert facts_of(dit.transformer, DIT, None, 50).grid == (4, 4)
    bare = facts_of(pipe.transformer, FLUX, None, 50)
    assert bare.grid == () and bare.image_tokens == 0


def test_it_is_read_once_a_request_and_holds_no_tensor_between_calls() -> None:
    read: list[Any] = []

    def count(given: Any) -> Grid:
        read.append(given["x"])
        return (len(read), 1)

    requests = [0]
    given: dict[str, Any] = {}
    grid = RequestGrid(count, lambda: requests[0], lambda: given)
    for requests[0], given["x"] in ((1, "a"), (1, "b"), (2, "c")):
        assert grid() == grid() == (requests[0], 1)
    given.clear()
    assert read == ["a", "c"]
    with pytest.raises(AssertionError, match="outside of a call"):
        grid()


def test_a_band_follows_the_sides_of_each_picture() -> None:
    """As many tokens each time: only the projections, (rows, rows) and (columns, columns), tell the grids apart."""
    stack, numbers = Stack(tiny_pipe(), steps=14).cache("freqca-published"), 4 * 64 * 128
    assert state_size(PRESETS["freqca-published"], stack.facts).total == 4 * (numbers + 64 + 64)
    for height, width in ((16, 16), (8, 32), (32, 8), (16, 16)):
        stack("a red ring", height=height, width=width, output_type="latent")
        assert stack.report().cache_bytes == 4 * (numbers + (height // 2) ** 2 + (width // 2) ** 2)


def test_without_a_grid_a_band_is_refused_and_the_model_left_as_it_was() -> None:
    denoiser, given = tiny_denoiser(), inputs(1.0)
    with torch.no_grad():
        before = denoiser(**given).sample
        with Stack(denoiser, steps=14).cache("freqca-published") as stack:
            with pytest.raises(StackError, match="expected a grid of 64 tokens, got no grid: try split='channels'"):
                stack(**{**given, "img_ids": given["img_ids"].flip(0)})
            assert torch.equal(stack(**given).sample, before)
        assert torch.equal(denoiser(**given).sample, before)


@pytest.mark.parametrize("options", [{"site": "per-module"}, {"site": "whole-model"}, {"back": 1}])
def test_a_band_is_of_the_output_stream_only(options: dict[str, Any]) -> None:
    with pytest.raises(StackError, match="split 'band' is of one stream: expected site 'output' or 'residual'"):
        Cache("freqca-published", **options)
