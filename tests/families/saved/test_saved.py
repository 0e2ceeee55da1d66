"""Pipelines from a folder, by the command line: ten families and more without a line about any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stack import Stack
from stack.cli import main
from stack.loading import load
from stack.runtime.call_arguments import size_arguments

from .build import SAVED, Saved

STEPS = 8
FULL = 5  # steps 0, 1, 3, 5, 7
QUANTIZE = '[quantize]\nscheme = "int8-weight"\nmin_features = 32\n'
CACHES = {"blocks": 'method = "svd"', "whole": 'method = "predictor-corrector"'}  # the second one for U-Nets
Run = Callable[..., str]


def _save(saved: Saved, folder: Path) -> None:
    """The pipeline, and beside it a recipe of two passes and one of the cache alone."""
    saved.make().save_pretrained(folder / "model")
    cache = f"[cache]\ninterval = 2\nwarmup = 2\n{CACHES[saved.cache]}\n"
    (folder / "mine.toml").write_text(f"steps = {STEPS}\n{QUANTIZE}{cache}")
    (folder / "cache.toml").write_text(f"steps = {STEPS}\n{cache}")


@pytest.fixture(scope="module", params=SAVED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(name)
    _save(SAVED[name], path)
    return path


def _options(saved: Saved) -> list[str]:
    return ["--size", saved.size, *(["--frames", str(saved.frames)] if saved.frames else [])]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the folder that has to succeed; gives what it said."""

    def call(command: str, recipe: str, *options: Any) -> str:
        with pytest.raises(SystemExit) as end:
            main([command, str(folder / recipe), "--model", str(folder / "model"), *map(str, options)])
        told = capsys.readouterr()
        assert not end.value.code, told.err
        return told.out

    return call


def test_explain_and_run(run: Run, name: str, folder: Path) -> None:
    saved = SAVED[name]
    assert "1. quantize: int8-weight" in (plan := run("explain", "mine.toml")) and "2. cache: " in plan
    told = run("run", "mine.toml", "--prompt", "a red ring", "--out", folder / "pictures", *_options(saved))
    assert "linears converted to int8-weight" in told and "of the model skipped on cached steps" in told
    with Image.open(folder / "pictures" / "000-a-red-ring.png") as picture:
        assert f"{picture.size[0]}x{picture.size[1]}" == saved.size
        assert (getattr(picture, "n_frames", 1) > 1) == bool(saved.frames)


def test_compare_writes_its_files(run: Run, name: str, folder: Path) -> None:
    options = ["--prompts", 1, "--steps", STEPS, "--no-compile", "--out", folder / "out", *_options(SAVED[name])]
    run("compare", "cache.toml", *options)
    assert {path.name for path in (folder / "out").iterdir()} == {
        "compare.json", "table.md", "grid.png", "chart.svg", "report.html",
    }  # fmt: skip
    record = json.loads((folder / "out" / "compare.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert not [warning for row in record["rows"] for warning in row["warnings"] if "failed" in warning]
    if SAVED[name].cache == "blocks":
        assert (rows["all"]["full_steps"], rows["all"]["steps"]) == (FULL, STEPS)
    else:  # a forecast around a whole model of random weights may go too far, and the step is made in full
        assert FULL <= rows["all"]["full_steps"] < rows["all"]["steps"]
    assert rows["fewer-steps"]["psnr_db"] is not None


def test_undo_gives_the_plain_output(name: str, folder: Path) -> None:
    from stack.recipe import load_recipe

    saved = SAVED[name]
    pipe = load(str(folder / "model"))
    size = size_arguments(pipe, saved.size, saved.frames or None)

    def made(run: Any) -> torch.Tensor:
        given = {**size, "generator": torch.Generator().manual_seed(1), "num_inference_steps": STEPS}
        return torch.as_tensor(run(prompt="a red ring", output_type="latent", return_dict=False, **given)[0])

    plain = made(pipe)
    stack = Stack.from_recipe(load_recipe(str(folder / "mine.toml")), pipe)
    assert not torch.equal(made(stack), plain)
    cached = [step.computed.linears for step in stack.report().steps if step.kind == "cached"]
    assert cached and set(cached) == {0.0}
    stack.undo()
    assert torch.equal(made(pipe), plain)


def test_a_fresh_shell(tmp_path: Path) -> None:
    saved = SAVED["PixArtSigma"]
    _save(saved, tmp_path)
    line = [sys.executable, "-m", "stack.cli", "run", "mine.toml", "--model", "model", "--prompt", "a red ring"]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [*line, *_options(saved)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ditstack-run" / "000-a-red-ring.png").is_file() and f"{FULL} full" in done.stdout
