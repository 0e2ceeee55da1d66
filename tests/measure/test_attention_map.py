"""The picture of what sparse attention kept: its numbers are those of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stack import Stack
from stack.attention.sparse_attn import SparseAttention
from stack.comparison.attention_map import attention_figure, check_map, kept_by_layer, save_attention_map
from stack.core.errors import StackError
from stack.core.passes import Pass
from stack.runtime.report import Report

from ..conftest import PROMPT, tiny_pipe

LAYERS = {
    "a.0.attn": {"kept": [1.0, 0.25, None], "dropped_mass": [0.0, 0.125, None]},
    "b.0.attn": {"kept": [1.0, 1.0, 0.5], "dropped_mass": [0.0, 0.0, 0.375]},
}


def report_of(by_layer: object) -> Report:
    return Report([], 0, {"sparse_attn": {"by_layer": by_layer}}, {}, [])


def test_what_is_drawn_is_what_was_kept() -> None:
    layers, panels = kept_by_layer(report_of(LAYERS))
    assert layers == ["a.0.attn", "b.0.attn"]
    np.testing.assert_array_equal(panels["kept"], [[1, 0.25, np.nan], [1, 1, 0.5]])
    np.testing.assert_array_equal(panels["mass"], [[1, 0.875, np.nan], [1, 1, 0.625]])
    axes = attention_figure(report_of(LAYERS)).axes
    for drawn, values in zip(axes, panels.values(), strict=False):
        (image,) = drawn.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
        assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == layers
    assert [drawn.get_title(loc="left") for drawn in axes[:2]] == [
        "key blocks kept",
        "softmax mass kept (sampled queries)",
    ]


def test_mass_that_was_not_measured_is_not_drawn() -> None:
    guessed = {"a": {"kept": [1.0, 0.25], "dropped_mass": [0.0, None]}}
    assert list(kept_by_layer(report_of(guessed))[1]) == ["kept"]


def test_a_run_is_drawn_step_by_step(tmp_path: Path) -> None:
    """Ten steps with a cache: first and last dense, cached steps blank."""
    sparse: list[Pass] = [SparseAttention(0.5, block=64, even_if_slower=True)]
    stack = Stack(tiny_pipe(36), steps=10).add(sparse[0]).cache("taylorseer", full_steps=(0, 2, 5, 9), steps=10)
    stack(PROMPT, output_type="latent")
    layers, panels = kept_by_layer(stack.report())
    full = np.isfinite(panels["kept"])
    assert panels["kept"].shape == (2, 10) and layers[0] == "transformer_blocks.0.attn"
    assert [sorted(np.flatnonzero(row).tolist()) for row in full] == [[0, 2, 5, 9]] * 2
    assert (panels["kept"][:, [0, 9]] == 1).all() and (panels["kept"][:, [2, 5]] < 1).all()
    assert ((panels["mass"][:, [2, 5]] > 0.3) & (panels["mass"][:, [2, 5]] < 1)).all()
    save_attention_map(stack.report(), tmp_path / "attention-000.png")
    assert (tmp_path / "attention-000.png").read_bytes()[:4] == b"\x89PNG"


def test_where_there_is_nothing_to_draw_it_says_so() -> None:
    with pytest.raises(StackError, match="expected a report of a run with sparse_attn"):
        kept_by_layer(Report([], 0, {}, {}, []))
    with pytest.raises(StackError, match=r"--attention-map: expected .* the recipe has no sparse_attn"):
        check_map(Stack(tiny_pipe()).cache("svd").plan, "--attention-map")
    with pytest.raises(StackError, match="none of which would be dropped"):
        check_map(Stack(tiny_pipe()).sparse_attn(0.5).plan, "--attention-map")
