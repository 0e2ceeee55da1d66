"""Narrow terminals, closed pipes, and wrong values of every kind: one line each, before a model is loaded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from stack.comparison.table import print_table
from stack.tuning.figures import Figures
from stack.tuning.limits import Limits
from stack.tuning.results import print_front
from stack.tuning.study import Tried
from stack.tuning.tune import Tuned

Run = Callable[..., tuple[int, str, str]]
RECORD = Path(__file__).parents[1] / "docs" / "compare" / "compare.json"


def printed(show: Callable[[Console], object], width: int) -> list[str]:
    file = io.StringIO()
    show(Console(width=width, file=file, color_system=None))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140])
def test_a_comparison_is_readable_at_any_width(width: int) -> None:
    record = json.loads(RECORD.read_text())
    lines = printed(lambda console: print_table(record, console), width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width and "…" not in text and "\u2026" not in text
    assert "shapes-flux on cpu" in text and all(name in text for name in ("quantize", "fewer-steps-multistep", "41.0"))


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_a_tuning_is_readable_at_any_width(width: int) -> None:
    stages = {"quantize": {"scheme": "int8"}, "cache": {"method": "predictor-corrector", "count": 9}}
    one = Tried(stages, Figures(38.04, 0.051, None, 1.21, 4.02, 0.0, 1.53, 4), 0.0, "searched")
    found = Tuned(Limits(min_psnr=30), chosen=one, checked=[one], tried=[one], base_mode="eager", base_seconds=4.86)
    lines = printed(lambda console: print_front(found, console), width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width and "…" not in text
    assert all(figure in text for figure in ("4.02x", "38.0 dB, LPIPS 0.051", "1.21", "1.53", "chosen"))


def test_a_list_is_readable_at_any_width(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.comparison.console.console", lambda piped=120: Console(width=40))
    code, out, _ = run("adapters")
    assert code == 0 and out.splitlines()[0].startswith("accvideo-5: class")
    table = [line for line in out.splitlines() if not line.startswith("not usable") and "adapters, " not in line]
    assert max(map(len, table)) <= 40 and "licence Hunyuan" in out


@pytest.mark.parametrize("line", [["rules", "--json"], ["recipes"], ["--version"], ["--help"]])
def test_a_closed_pipe_is_no_error(line: list[str]) -> None:
    """As of `| head` that has seen enough."""
    code = f"from stack.cli import main\nmain({line!r})"
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert (done.wait(), done.stderr.read()) == (141, "")
    done.stderr.close()


WRONG = {
    "no whole number": (["run", "--prompts", "x"], "--prompts: expected a whole number, got 'x'"),
    "half a number": (["run", "--seed=1.5"], "--seed: expected a whole number, got '1.5'"),
    "no number": (["calibrate", "--budget", "soon"], "--budget: expected a number, got 'soon'"),
    "the last counts": (["run", "--seed", "1", "--seed", "z"], "--seed: expected a whole number, got 'z'"),
    "size": (["run", "--size", "9x"], "--size must be WIDTHxHEIGHT in pixels"),
    "size to compare": (["compare", "--size", "0x0"], "--size must be WIDTHxHEIGHT in pixels"),
    "size to tune": (["tune", "--min-psnr", "30", "--size", "big"], "--size must be WIDTHxHEIGHT in pixels"),
    "frames": (["calibrate", "--frames", "0"], "--frames must be at least 1, got 0"),
    "frames to explain": (["explain", "fast", "--frames", "-3"], "--frames must be at least 1, got -3"),
    "no limit": (["tune"], "expected a limit to tune for, got none: give one of --min-psnr, --max-lpips"),
    "no cards": (["adapters", "--folder", "{}"], "--folder: expected a folder with cards (*.toml), got none in"),
    "psnr": (["tune", "--min-psnr", "1000"], "--min-psnr must be a number of at most 100, got 1000"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_values_are_told_before_a_model_is_loaded(
    run: Run, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stack.loading.load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    arguments, expected = WRONG[kind]
    code, out, err = run(*(argument.format(tmp_path) for argument in arguments))
    assert (code, out) == (2, "") and err.startswith(f"error: {expected}") and len(err.splitlines()) == 1, err
    assert not [*tmp_path.iterdir()]
