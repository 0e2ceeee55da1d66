"""Where tokens lie: the grid that a class's arguments say, and blocks that are given some tokens only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack
from stack.caching.fastcache.linear_map import LinearMap
from stack.caching.fastcache.maps import APPROXIMATIONS, WHOLE, LinearMaps
from stack.models.derive.grid import Listed, Named, Patches, Positions
from stack.models.derive.wiring import wiring_of_small
from stack.models.layout import Along, Wiring
from stack.models.small import Sizes, small

from .classes import CLASSES, LACKS, LEVELS, REFUSED, flat, made, plain, same, some, wired

SQUARE = {"DiTTransformer2DModel": (4, 4), "Kandinsky6SRTransformer3DModel": (3, 8, 8)}  # sizes they cannot differ from
WITH_BLOCKS = [name for name in CLASSES if name not in REFUSED and "blocks" not in LACKS.get(name, {})]


@pytest.mark.parametrize("name", [name for name in WITH_BLOCKS if "grid" not in LACKS.get(name, {})])
def test_the_grid_is_that_of_the_call(name: str) -> None:
    given = made(name).call(Sizes(frames=3, rows=4, columns=6))
    grid = wired(name).grid(made(name).denoiser, given)
    assert grid == SQUARE.get(name, (3, 4, 6) if len(grid) == 3 else (4, 6))


def ids(*sizes: int) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(size).float() for size in sizes))


BESIDE = torch.cat([ids(1, 4, 6), ids(1, 4, 6) + torch.tensor([1.0, 0, 0])[:, None].T])


@pytest.mark.parametrize(
    ("reader", "given", "grid"),
    [
        (Positions("ids"), {"ids": ids(1, 4, 6)}, (4, 6)),
        (Positions("ids"), {"ids": ids(1, 4, 6)[None] * 0.5}, (4, 6)),
        (Positions("ids"), {"ids": ids(3, 4, 6)}, (3, 4, 6)),
        (Positions("ids"), {"ids": ids(1, 4, 6, 1)}, (4, 6)),
        (Positions("ids", "x"), {"ids": torch.cat([ids(1, 1, 5), ids(1, 4, 6)]), "x": torch.zeros(1, 24, 8)}, (4, 6)),
        (Positions("ids"), {"ids": ids(1, 4, 6).flip(0)}, ()),
        (Positions("ids"), {"ids": ids(1, 4, 6)[:-1]}, ()),
        (Positions("ids"), {"ids": torch.cat([ids(1, 4, 6), ids(1, 4, 5)])}, ()),
        (Listed("shapes"), {"shapes": [[(1, 4, 6)]]}, (4, 6)),
        (Listed("shapes"), {"shapes": [(3, 4, 6), (3, 4, 6)]}, (3, 4, 6)),
        (Listed("shapes"), {"shapes": [[(1, 4, 6), (1, 4, 6)]]}, ()),  # a picture beside its condition
        (Listed("shapes"), {"shapes": [[(1, 4, 6)], [(1, 4, 5)]]}, ()),
        (Named(("num_frames", "height", "width")), {"num_frames": 3, "height": 4, "width": 6}, (3, 4, 6)),
        (Named(("num_frames", "height", "width")), {"num_frames": 3, "height": None, "width": 6}, ()),
        (Patches("x", (-3, -2, -1), (1, 2, 2)), {"x": torch.zeros(1, 16, 1, 8, 12)}, (4, 6)),
        (Patches("x", (-4, -3, -2), (1, 2, 2)), {"x": torch.zeros(1, 3, 8, 12, 16)}, (3, 4, 6)),
    ],
)
def test_readers_of_grids(reader: Any, given: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    assert reader(None, given) == grid


def rewired(module: str, hook: Callable[[torch.Tensor], torch.Tensor]) -> Wiring:
    """The wiring of a small SD3 whose module returns something else."""
    given = small(diffusers.SD3Transformer2DModel)
    given.denoiser.get_submodule(module).register_forward_hook(lambda _, __, out: hook(out))
    return wiring_of_small(diffusers.SD3Transformer2DModel, given)


def test_tokens_in_another_order_are_no_grid() -> None:
    assert not {"grid", "along"} & rewired("pos_embed", lambda tokens: tokens * 1).lacks.keys()
    by_columns = rewired("pos_embed", lambda tokens: tokens.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2))
    assert by_columns.lacks["grid"].startswith("the latent's tokens do not lie on a grid, row by row")


def test_blocks_that_know_places_cannot_be_given_some_tokens() -> None:
    counting = rewired("transformer_blocks.1.norm2", lambda out: out + 0.1 * torch.arange(out.shape[1])[:, None])
    assert counting.lacks["along"] == "transformer_blocks.1 depends on the order of its tokens"


def test_arguments_along_the_tokens_and_whose_they_are() -> None:
    assert wired("FluxTransformer2DModel").along == {"image_rotary_emb": Along(("text", "image"))}
    assert wired("HunyuanVideoTransformer3DModel").along == {
        "freqs_cis": Along(("video",)), "image_rotary_emb": Along(("video",)),
        "attention_mask": Along(("video", "text"), axis=3),
    }  # fmt: skip
    # A table for the image and one for the text.
    assert wired("QwenImageTransformer2DModel").along == {"image_rotary_emb": Along(("image",), only=(0,))}


def made_up(stack: Stack, name: str) -> LinearMaps:
    """Maps with small random weights for every block and stream of a class."""
    facts, source = stack.facts, torch.Generator().manual_seed(0)
    keys = [f"{number}/{stream}" for number in range(facts.blocks) for stream in wired(name).streams]

    def random() -> LinearMap:
        weight = torch.randn(facts.width, facts.width, generator=source) * 0.02
        return LinearMap((weight,), torch.randn(facts.width, generator=source))

    maps = {key: random() for key in [*keys, WHOLE]}
    table = torch.tensor([[[1e9]] * facts.blocks, [[0.0]] * facts.blocks])
    return LinearMaps(
        facts.family,
        facts.blocks,
        facts.width,
        dict.fromkeys(APPROXIMATIONS, maps),
        dict.fromkeys(APPROXIMATIONS, table),
    )


SOME_TOKENS = [name for name in WITH_BLOCKS if not {"along", "range", "rows"} & LACKS.get(name, {}).keys()]


@pytest.mark.parametrize("name", some(SOME_TOKENS, 1))
def test_fastcache_runs_the_tokens_that_moved(name: str) -> None:
    """As published: the others pass by a fitted map. Where all moved the step is full."""
    alone = plain(name)[0]
    for moved, kind in ((slice(0, 2), "fp"), (slice(None), "ff")):
        stack = Stack(made(name).denoiser, steps=len(LEVELS))
        options = {"maps": made_up(stack, name), "warmup": 1, "moving": 1.0 if kind == "fp" else 0.0}
        given = [made(name).call(Sizes(noise=level)) for level in LEVELS[:2]]
        latent = given[1][wired(name).latent]
        for one in latent if isinstance(latent, list) else [latent]:
            one[..., moved, :] += 1
        with torch.no_grad(), stack.cache("fastcache-published-tokens", **options):
            outputs = [flat(stack(**each, return_dict=False)) for each in given]
            assert "".join(step.kind[0] for step in stack.report().steps) == kind
            assert same(outputs[0], alone)
            share = stack.report().passes["cache"]["block_share"]
        assert share == pytest.approx(1) if kind == "ff" else 0.5 < share < 1, (kind, share)
