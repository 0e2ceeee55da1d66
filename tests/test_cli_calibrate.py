"""`ditstack calibrate`: its folder, what it writes, and what is in there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stack import load_recipe
from stack.calibrated.results import folder_of

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--budget", "5", "--full-steps", "4", "--device", "cpu")


@pytest.fixture
def line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A short calibration in the folder."""
    monkeypatch.chdir(folder)
    (folder / "prompts.txt").write_text("a red ring\na blue star\na green circle\n")
    return ["calibrate", "mine.toml", "--model", "model", "--prompts-file", "prompts.txt", *QUICK]


def test_a_folder_holds_all_of_a_calibration(run: Run, folder: Path, line: list[Any]) -> None:
    code, out, err = run(*line, "--out", "found")
    assert code == 0, err
    assert sorted(path.name for path in (folder / "found").iterdir()) == [
        "calibrate.json", "calibrated.toml", "curve.png",
    ]  # fmt: skip
    assert out.splitlines()[-1] == "written: found/calibrated.toml, found/curve.png, found/calibrate.json"
    kept, recipe = json.loads((folder / "found" / "calibrate.json").read_text()), load_recipe("found/calibrated.toml")
    assert kept["full_steps"] == list(recipe.stages["cache"]["full_steps"]) and len(kept["full_steps"]) == 4
    assert kept["asked"]["prompts"] == ["a red ring", "a blue star", "a green circle"]
    assert kept["asked"]["goal"] == {"full_steps": 4, "min_psnr": 0.0, "max_seconds": 0.0}
    assert kept["notes"]["psnr_db"] == round(kept["psnr_db"], 1) and kept["verdict"] == out.splitlines()[0]


def test_json_is_the_record_and_nothing_else(run: Run, folder: Path, line: list[Any]) -> None:
    code, out, _ = run(*line, "--json")
    assert code == 0 and json.loads(out) == json.loads((folder / "ditstack-calibrate" / "calibrate.json").read_text())


def test_another_calibration_has_another_folder(run: Run, folder: Path, line: list[Any]) -> None:
    assert run(*line)[0] == 0
    first = (folder / "ditstack-calibrate" / "calibrate.json").read_text()
    assert run(*line)[0] == 0  # the same again
    assert run(*line, "--seed", "5")[0] == 0
    assert sorted(path.name for path in folder.glob("ditstack-*")) == ["ditstack-calibrate", "ditstack-calibrate-2"]
    assert json.loads(first)["asked"]["seed"] == 0
    code, out, err = run(*line, "--seed", "6", "--out", "ditstack-calibrate")
    assert (code, out) == (2, "")
    assert "--out: ditstack-calibrate holds another calibration (calibrate.json says which)" in err


def test_a_folder_with_a_file_that_cannot_be_read_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path("ditstack-calibrate")
    for text in ("{", "[]", "\x00"):
        base.mkdir(exist_ok=True)
        (base / "calibrate.json").write_text(text)
        assert folder_of(None, {"seed": 0}) == Path("ditstack-calibrate-2")
    (base / "calibrate.json").write_text('{"asked": {"seed": 0}}')
    assert folder_of(None, {"seed": 0}) == base
    assert folder_of(Path("new"), {"seed": 0}) == Path("new") and not Path("new").exists()


def test_the_default_recipe_has_a_cache(run: Run, line: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stack.loading.load", loading)
    assert run("calibrate")[0] == 130
    code, _, err = run("calibrate", "fast")
    expected = "recipe fast has no cache to calibrate: expected one with [cache], such as balanced; "
    expected += "Stack.fit_solver(prompts) fits its solver"
    assert (code, err) == (2, f"error: {expected}\n")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--min-psnr", "40"], "one of full_steps, min_psnr and max_seconds, got full_steps=4 and min_psnr=40"),
        (["--budget", "0"], "--budget must be at least 1, got 0"),
        (["--max-seconds", "-1"], "--max-seconds must be at least 0, got -1"),
    ],
)
def test_wrong_goals_are_refused_before_a_model_is_loaded(
    run: Run, folder: Path, line: list[Any], more: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.loading.load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    code, out, err = run(*line, *more)
    assert (code, out) == (2, "") and expected in err and len(err.splitlines()) == 1
    assert not (folder / "ditstack-calibrate").exists()


def test_what_was_found_until_ctrl_c_is_written_and_told(
    run: Run, folder: Path, line: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stack.calibration.trials import Trials

    inner, asked = Trials.pictures, []

    def interrupted(self: Trials, candidate: Any) -> Any:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return inner(self, candidate)

    monkeypatch.setattr(Trials, "pictures", interrupted)
    code, out, err = run(*line)
    kept = json.loads((folder / "ditstack-calibrate" / "calibrate.json").read_text())
    assert code == 130 and kept["interrupted"] is True and "WARNING: interrupted" in out
    assert err.splitlines()[-1] == "interrupted: the best until then is kept in ditstack-calibrate"
    assert "Warning" not in err


def test_nothing_is_left_behind_where_nothing_was_found(
    run: Run, folder: Path, line: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stack.calibrated.calibrate.calibrate", interrupted)
    code, _, err = run(*line)
    assert (code, err.splitlines()[-1]) == (130, "interrupted: nothing is written, recipe mine is as it was")
    assert not (folder / "ditstack-calibrate").exists()
