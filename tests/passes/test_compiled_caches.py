"""Every cache over compiled blocks: how many graphs that takes, and that the numbers stay what they were."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch._dynamo.utils import counters

from stack import Stack
from stack.caching.methods import PRESETS

from ..caching.fitted import PLAIN, fitted
from ..conftest import inputs, tiny_denoiser
from ..wirings import FLUX

STEPS, DOUBLE, SINGLE = 12, 2, 2
# Graphs of all presets of a site together, readings left out. Two kinds of blocks are two graphs; what stands around
# blocks adds none. FastCache runs blocks on some of the tokens: one version more of each, for any number of them.
# What stands around modules cuts a block at each of them (3 in a double block, 3 in a single one), and each module is
# compiled for itself, those of text and image once for each length; on cached steps norms are given no tokens, which
# is one version more of the pieces behind them. ToCa and DuCa also cut at the norms before an MLP, "values" at the
# linears that make them.
GRAPHS = {"per-block": 2, "fastcache": 4, "per-module": 20, "attention": 7, "relational": 16, "tokens": 36}


def site_of(preset: str) -> str:
    site = PRESETS[preset].site.name
    return "per-block" if site in ("output", "residual", "x0", "whole-model") else site


SITES = {site: list(presets) for site, presets in groupby(sorted(PLAIN, key=site_of), site_of)}


@torch.no_grad()
def outputs(stack: Stack) -> list[torch.Tensor]:
    with stack:
        return [stack(**inputs(1 - step / STEPS)).sample for step in range(STEPS)]


@pytest.mark.parametrize("site", SITES)
def test_a_few_graphs_are_enough_for_every_step_and_block(site: str, aot_eager: None) -> None:
    model, start = tiny_denoiser(DOUBLE, SINGLE), counters["stats"]["unique_graphs"]
    for preset in SITES[site]:
        options = fitted(preset, FLUX, DOUBLE + SINGLE, model.inner_dim, STEPS)
        eager = outputs(Stack(model, steps=STEPS).cache(preset, **options))
        compiled = outputs(Stack(model, steps=STEPS).compile().cache(preset, **options))
        assert all(map(torch.equal, compiled, eager)), preset
    assert counters["stats"]["unique_graphs"] - start == GRAPHS[site]
