"""The folder of a tuning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stack import StackError
from stack.tuning.results import folder_of

Run = Callable[..., tuple[int, str, str]]


def test_another_tuning_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, limits = Path("ditstack-tune"), {"min_psnr": 30.0, "max_error": 0.0}
    assert folder_of(None, "m", limits) == base and not base.exists()
    base.mkdir()
    (base / "study.db").write_text("")  # stopped before anything was written
    assert folder_of(None, "m", limits) == base
    (base / "tune.json").write_text(json.dumps({"model": "m", "limits": {"min_psnr": 30}, "verdict": "x"}))
    assert folder_of(None, "m", limits) == folder_of(base, "m", limits) == base
    for other in (("m", {"min_psnr": 31.0}), ("n", limits)):
        assert folder_of(None, *other) == Path("ditstack-tune-2")
        with pytest.raises(StackError, match=r"--out: ditstack-tune holds another tuning \(tune.json says which\)"):
            folder_of(base, *other)
    for text in ("{", "[]", "\x00"):
        (base / "tune.json").write_text(text)
        assert folder_of(None, "m", limits) == Path("ditstack-tune-2")


def test_two_tunings_do_not_share_a_folder(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "p.txt").write_text("a red ring\na blue star\na green circle\n")
    line = ["tune", "--model", "model", "--prompts-file", "p.txt", "--steps", "6", "--trials", "1", "--no-compile"]
    code, out, err = run(*line, "--min-psnr", "15")
    assert code == 0, err
    record = json.loads((folder / "ditstack-tune" / "tune.json").read_text())
    assert " ".join(out.split()).startswith(record["verdict"]), "the verdict comes first"
    assert run(*line, "--min-psnr", "16")[0] == 0
    assert sorted(path.name for path in folder.glob("ditstack-*")) == ["ditstack-tune", "ditstack-tune-2"]
    code, out, err = run(*line, "--min-psnr", "17", "--out", "ditstack-tune")
    assert (code, out) == (2, "") and "holds another tuning" in err
    assert json.loads((folder / "ditstack-tune" / "tune.json").read_text()) == record
