"""The command line, run in this process on a tiny model in a folder."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stack import Stack

from .conftest import tiny_pipe
from .models.test_hunyuan_video import tiny as tiny_video

Run = Callable[..., tuple[int, str, str]]


def last(told: str) -> str:
    """The last line on stderr; before it may stand what was being done."""
    return told.splitlines()[-1]


def test_compare_writes_everything(run: Run, folder: Path) -> None:
    code, out, err = run(
        "compare", folder / "mine.toml", "--model", folder / "model", "--steps", "14", "--prompts", "1", "--no-compile",
        "--out", folder / "out", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"compare.json", "table.md", "grid.png", "chart.svg", "report.html"}
    record = json.loads((folder / "out" / "compare.json").read_text())
    assert [row["name"] for row in record["rows"] if not row["same_as"]] == [
        "base", "all", "fewer-steps", "fewer-steps-multistep",
    ]  # fmt: skip
    assert record["partial"] is False and record["device"] == "cpu"
    assert "fewer-steps-multistep" in out and "one prompt, one seed" in out
    assert out.startswith(record["verdict"]) and err.startswith("compare: loading ")


def test_compare_at_another_size(run: Run, folder: Path) -> None:
    line = ["compare", folder / "mine.toml", "--model", folder / "model", "--steps", "14", "--prompts", "1"]
    code, _, err = run(*line, "--no-compile", "--out", folder / "out", "--device", "cpu", "--size", "24x8")
    assert code == 0, err
    record = json.loads((folder / "out" / "compare.json").read_text())
    assert record["size"] == [24, 8]
    assert record["macs_per_step"]["attention"] == 2 * 2 * 2 * (12 * 4 + 16) ** 2 * 64


def test_ctrl_c_keeps_what_was_measured(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stack.comparison.engine import PipelineEngine

    inner, done = PipelineEngine.generate, []

    def interrupted(self: Any, *args: Any) -> Any:
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        return inner(self, *args)

    monkeypatch.setattr(PipelineEngine, "generate", interrupted)
    code, out, err = run(
        "compare", folder / "mine.toml", "--model", folder / "model", "--steps", "14", "--no-compile", "--out",
        folder / "out",
    )  # fmt: skip
    assert code == 130
    assert last(err) == ("interrupted: the 5 pictures measured until then are kept; the same command goes on from them")
    record = json.loads((folder / "out" / "compare.json").read_text())
    assert record["partial"] is True
    assert sum(row["prompts_done"] for row in record["rows"] if not row["same_as"]) == 5
    assert (folder / "out" / "grid.png").is_file() and "fewer-steps" in out


def test_ctrl_c_before_the_first_picture_keeps_what_an_earlier_run_wrote(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    (folder / "out").mkdir()
    (folder / "out" / "grid.png").write_bytes(b"earlier")
    line = ["compare", folder / "mine.toml", "--model", folder / "model", "--no-compile", "--out", folder / "out"]
    monkeypatch.setattr("stack.comparison.engine.PipelineEngine.generate", interrupted)
    code, _, err = run(*line)
    assert (code, last(err)) == (130, "interrupted: no picture was measured, nothing is written")
    assert [path.name for path in (folder / "out").iterdir()] == ["grid.png"]
    assert (folder / "out" / "grid.png").read_bytes() == b"earlier"


@pytest.mark.parametrize("command", ["compare", "run", "explain", "calibrate"])
def test_ctrl_c_while_the_model_is_loaded_is_told(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    # This one first: it is imported here, and would keep the other's stand-in for its own.
    monkeypatch.setattr("stack.explained.load", interrupted)
    monkeypatch.setattr("stack.loading.load", interrupted)
    before = sorted(os.listdir(folder))
    code, out, err = run(command, folder / "mine.toml")
    assert (code, out, last(err)) == (130, "", "interrupted: nothing more is written")
    assert sorted(os.listdir(folder)) == before


def test_run_saves_the_picture_the_stack_makes(run: Run, folder: Path) -> None:
    from stack.loading import load
    from stack.recipe import load_recipe

    code, out, err = run(
        "run", folder / "mine.toml", "--model", folder / "model", "--prompt", "a red ring", "--prompt", "a blue star.",
        "--seed", "3", "--out", folder / "pictures",
    )  # fmt: skip
    assert code == 0, err
    assert "14 denoiser calls, 5 full" in out
    saved = sorted(path.name for path in (folder / "pictures").iterdir())
    assert saved == ["000-a-red-ring.png", "001-a-blue-star.png"]
    stack = Stack.from_recipe(load_recipe(str(folder / "mine.toml")), load(str(folder / "model")))
    expected = stack("a red ring", generator=torch.Generator().manual_seed(3)).images[0]
    assert Image.open(folder / "pictures" / saved[0]).tobytes() == expected.tobytes()


def test_run_draws_what_attention_kept_beside_the_picture(run: Run, folder: Path) -> None:
    tiny_pipe(36).save_pretrained(folder / "larger")
    sparse = 'name = "sparse"\nsteps = 4\n[sparse_attn]\nblock = 64\neven_if_slower = true\n'
    (folder / "sparse.toml").write_text(sparse)
    asked = ("--prompt", "a red ring", "--attention-map", "--out", folder / "pictures")
    code, out, err = run("run", folder / "sparse.toml", "--model", folder / "larger", *asked)
    assert code == 0, err
    assert f"attention: {folder / 'pictures' / 'attention-000.png'}" in out
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["000-a-red-ring.png", "attention-000.png"]
    code, _, err = run("run", folder / "mine.toml", "--model", folder / "model", *asked)
    assert code == 2 and "--attention-map: expected a stack with sparse attention: the recipe has no sparse_attn" in err


def test_run_saves_a_video_frame_by_frame(run: Run, folder: Path) -> None:
    tiny_video().save_pretrained(folder / "video")
    code, _, err = run("run", folder / "mine.toml", "--model", folder / "video", "--out", folder / "out")
    assert code == 0, err
    (path,) = (folder / "out").iterdir()
    assert path.name == "000-a-red-ring-moving-left-on-a-white-background.png"
    video = Image.open(path)
    assert video.n_frames == 4 and video.info["duration"] == 125 and video.size == (16, 16)
    code, _, err = run("run", folder / "mine.toml", "--model", folder / "video", "--prompt", "a red ring")
    assert code == 2 and "expected 'a COLOUR SHAPE moving DIRECTION" in err


def test_explain_plans_for_the_steps_asked(run: Run, folder: Path) -> None:
    code, out, _ = run("explain", folder / "mine.toml", "--model", folder / "model", "--steps", "20")
    assert code == 0
    assert "planned for 20 steps" in out and "1. cache: svd, 6 of 20 steps full" in out


def test_explain_plans_a_real_model_without_its_weights(run: Run) -> None:
    code, out, err = run("explain", "wan21-14b", "--assume", "h100", "--size", "832x480", "--frames", "33")
    assert code == 0, err
    first, second, *_ = out.splitlines()
    assert first.startswith("Wan-AI/Wan2.1-T2V-14B-Diffusers from its configuration alone: no weights were read")
    assert second == "832x480, 33 frames: 9 x 30 x 52 tokens, 512 text tokens"
    assert "weights: 14.29 B parameters, 28.58 GB before quantization, 14.53 GB after" in out


def test_explain_alone_lists_what_can_be_given(run: Run) -> None:
    code, out, _ = run("explain")
    assert code == 0 and out == run("recipes")[1]
    assert re.search(r"^flux-dev: .*, black-forest-labs/FLUX.1-dev\)$", out, re.MULTILINE)
    assert re.search(r"^fast: .*, shapes-flux\)$", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["models", "recipes", "adapters"])
def test_lists_name_what_ships(run: Run, command: str) -> None:
    code, out, _ = run(command)
    assert code == 0
    expected = {"models": "shapes-flux: ", "recipes": "balanced: ", "adapters": "flux-turbo-alpha "}[command]
    assert expected in out


def test_adapters_lists_a_folder_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "me/model"\nsteps = 6\nfewest = 4\n[licence]\nweights = "MIT"\n')
    code, out, _ = run("adapters", "--folder", tmp_path)
    assert code == 0
    assert out.splitlines()[1].split() == ["mine", "any", "4-6", "scheduler", "none", "MIT", "no"]
    assert out.splitlines()[-1] == "1 adapters, 1 usable, 0 verified; the others hold recalled facts"
    (tmp_path / "bad.toml").write_text('model = "me/model"\n')
    code, out, err = run("adapters", "--folder", tmp_path)
    assert (code, out) == (2, "") and "card bad: expected steps" in err


BAD = {
    "recipe": (["compare", "nothing"], "unknown recipe 'nothing': expected one of balanced"),
    "recipe file": (["explain", "{}/broken.toml"], "not valid TOML"),
    "keep": (["compare", "{}/keep.toml"], "keep"),
    "model": (
        ["compare", "{}/mine.toml", "--model", "nothing"],
        "unknown model 'nothing': expected one of shapes-flux",
    ),
    "folder": (["run", "{}/mine.toml", "--model", "{}"], "model_index.json"),
    "steps": (["compare", "--steps", "0"], "--steps must be at least 2, got 0"),
    "run steps": (["run", "--steps", "0"], "--steps must be at least 1, got 0"),
    "prompts": (["compare", "--prompts", "0"], "--prompts must be at least 1, got 0"),
    "no number": (["compare", "--steps", "many"], "--steps"),
    "device": (["explain", "{}/mine.toml", "--device", "cuda:99"], "device 'cuda:99' is not here"),
    "odd device": (["explain", "{}/mine.toml", "--device", "tv"], "unknown device 'tv'"),
    "command": (["frobnicate"], "frobnicate"),
    "option": (["compare", "--nothing"], "--nothing"),
    "prompt": (
        ["run", "{}/mine.toml", "--model", "{}/model", "--prompt", "a photo of a cat"],
        "cannot read the prompt 'a photo of a cat'",
    ),
    "like a command": (["compar"], "No such command 'compar'. Did you mean 'compare'?"),
    "like a recipe": (["explain", "balancd"], "did you mean 'balanced'?"),
    "like a model": (["explain", "{}/mine.toml", "--model", "shapes-flx"], "did you mean 'shapes-flux'?"),
    "size": (["explain", "flux-dev", "--size", "1024x"], "--size must be WIDTHxHEIGHT in pixels, such as 1024x1024"),
    "machine": (["explain", "flux-dev", "--assume", "h10"], "did you mean 'h100'?"),
    "frames": (["explain", "flux-dev", "--assume", "h100", "--frames", "9"], "makes pictures: expected no --frames"),
    "size to run": (["run", "{}/mine.toml", "--model", "{}/model", "--size", "64y"], "--size must be WIDTHxHEIGHT"),
    "no frames": (["compare", "{}/mine.toml", "--model", "{}/model", "--frames", "0"], "--frames must be at least 1"),
    "frames of a picture": (
        ["compare", "{}/mine.toml", "--model", "{}/model", "--frames", "9"],
        "makes pictures: expected no --frames, got 9",
    ),
    "size that is fixed": (
        ["run", "{}/mine.toml", "--model", "shapes-dit", "--size", "64x64"],
        "takes no width and height: expected no --size, got '64x64'",
    ),
    "config": (["explain", "flux-dev", "--config", "{}"], "expected model_index.json of a saved pipeline"),
    "like a rule": (["rules", "few-step"], "did you mean 'few-steps'?"),
    "huge steps": (["compare", "--steps", "10001"], "--steps must be a number of at most 10000, got 10001"),
    "no psnr": (["calibrate", "--min-psnr", "nan"], "--min-psnr must be a number of at most 100, got nan"),
    "seed": (["run", "--seed", "-1"], "--seed must be at least 0, got -1"),
    "huge seed": (["run", "--seed", "9" * 30], "--seed must be a number of at most"),
    "bytes": (["explain", "{}/latin.toml"], "latin.toml: expected UTF-8 text, got other bytes at 8"),
    "interval": (
        ["explain", "{}/interval.toml"],
        "interval.toml: cache.interval: expected a whole number",
    ),
    "cats": (
        ["calibrate", "{}/mine.toml", "--model", "{}/model", "--prompts-file", "{}/cats.txt"],
        "cannot read the prompt 'a cat'",
    ),
    "index": (["explain", "{}/mine.toml", "--model", "{}/odd"], "model_index.json is no JSON"),
    "twice": (["compare", "{}/mine.toml", "{}/mine.toml"], "recipe 'mine' is given 2 times"),
}


OUTPUTS = (
    ["compare", "mine.toml", "--out", "mine.toml"],
    ["run", "mine.toml", "--out", "mine.toml/x"], ["run", "mine.toml", "--out", "mine.toml"],
    ["calibrate", "mine.toml", "--out", "mine.toml"], ["calibrate", "mine.toml", "--out", "mine.toml/x"],
    ["tune", "mine.toml", "--min-psnr", "30", "--out", "mine.toml"],
    ["rules", "--write", "gone/x.md"], ["rules", "--write", "model"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_outputs_are_checked_before_a_model_is_loaded(
    run: Run, folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("stack.loading.load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    code, out, err = run(*arguments, *(["--model", "model"] if arguments[0] != "rules" else []))
    assert (code, out) == (2, "") and re.fullmatch(r"error: --(out|write): [^\n]+\n", err), err
    assert sorted(path.name for path in folder.iterdir()) == ["mine.toml", "model"]


def test_pictures_of_two_runs_do_not_mix(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first = ["run", "mine.toml", "--model", "model", "--steps", "3", "--prompt", "a red ring"]
    assert run(*first, "--out", "pictures")[0] == 0
    drawn = (folder / "pictures" / "000-a-red-ring.png").read_bytes()
    assert run(*first, "--out", "pictures")[0] == 0  # the same run again goes on where it was
    assert (folder / "pictures" / "000-a-red-ring.png").read_bytes() == drawn
    code, _, err = run(*first, "--out", "pictures", "--seed", "5")
    told = "pictures holds pictures of another run (000-a-red-ring.png: recipe mine, model model, 3 steps, seed 0"
    assert code == 2 and told in err
    assert run(*first)[0] == run(*first, "--seed", "5")[0] == run(*first, "--seed", "5")[0] == 0
    assert sorted(path.name for path in folder.glob("ditstack-run*")) == ["ditstack-run", "ditstack-run-2"]
    assert (folder / "ditstack-run" / "000-a-red-ring.png").read_bytes() == drawn


@pytest.mark.parametrize("command", ["run", "compare"])
def test_two_runs_at_a_time_do_not_share_a_folder(run: Run, folder: Path, command: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / ".ditstack-lock").write_text(str(os.getpid()))
    line = [command, folder / "mine.toml", "--model", folder / "model", "--out", folder / "out", "--steps", "3"]
    code, _, err = run(*line)
    assert code == 2 and f"--out: process {os.getpid()} is writing to" in err
    assert [path.name for path in (folder / "out").iterdir()] == [".ditstack-lock"]


def test_ctrl_c_in_run_says_what_was_kept(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, seeds = Stack.__call__, []

    def interrupted(self: Stack, *args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["generator"].initial_seed())
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Stack, "__call__", interrupted)
    prompts = [part for text in ("a red ring", "a blue star", "a green circle") for part in ("--prompt", text)]
    line = ["run", folder / "mine.toml", "--model", folder / "model", "--out", folder / "out", "--steps", "3", *prompts]
    code, _, err = run(*line)
    assert code == 130 and last(err) == f"interrupted: the first 2 of 3 pictures are kept in {folder / 'out'}"
    assert sorted(os.listdir(folder / "out")) == ["000-a-red-ring.png", "001-a-blue-star.png"]
    monkeypatch.setattr(Stack, "__call__", inner)
    assert run(*line)[0] == 0 and len(os.listdir(folder / "out")) == 3


def test_an_interrupted_comparison_leaves_no_pictures_of_the_one_before(folder: Path) -> None:
    from stack.comparison.files import save_outcome
    from stack.comparison.outcome import Comparison

    for name in ("grid.png", "chart.svg"):
        (folder / name).write_text("of a run before")
    record = {"rows": [], "model": "m", "partial": True}
    monkey = pytest.MonkeyPatch()
    monkey.setattr("stack.comparison.files.report_html", lambda *args: "page")
    monkey.setattr("stack.comparison.outcome.markdown", lambda record: "table")
    written = save_outcome(Comparison(record), folder)
    monkey.undo()
    assert [path.name for path in written] == ["compare.json", "table.md", "report.html"]
    assert not (folder / "grid.png").exists() and not (folder / "chart.svg").exists()


@pytest.mark.parametrize(("arguments", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, folder: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    (tmp_path / "interval.toml").write_text("[cache]\ninterval = 2.5\n")
    (tmp_path / "cats.txt").write_text("a cat\na dog\na cow\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model_index.json").write_text("{")
    (tmp_path / "keep.toml").write_text("[sparse_attn]\nkeep = 0\n")
    code, out, err = run(*(argument.format(tmp_path) for argument in arguments))
    assert code == 2
    assert re.fullmatch(rf"({arguments[0]}: loading [^\n]+\n)?error: [^\n]+\n", err), err
    assert expected in err
    assert out == ""


def test_logging_is_as_it_was_afterwards(run: Run) -> None:
    before = logging.root.manager.disable
    run("models")
    assert logging.root.manager.disable == before
