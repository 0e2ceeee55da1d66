"""Files: refused in one line, written whole or not at all, kept in their folder, and not shared by two runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import StackError
from stack.core.files import (
    LOCK,
    check_file,
    check_folder,
    claimed,
    inside,
    read_toml,
    toml_text,
    whole,
    write_text,
)
from stack.recipe import Recipe, load_recipe, recipe_toml


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xe9 = 1", "x: expected UTF-8 text, got other bytes at 0"),
        ("a = 1".encode("utf-16"), "x: expected UTF-8 text"),
        (b"a = ", "x is not valid TOML"),
        (b"a = " + b"[" * 20_000, "x is not valid TOML"),
        (b"a = " + b"9" * 5000, "x is not valid TOML"),
        (b"#" * (2 << 20), "x: expected at most 1048576 bytes, got 2097152"),
    ],
)
def test_files_that_are_no_toml(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(StackError, match=told):
        read_toml(tmp_path / "x.toml", "x")


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "got a folder at"), (tmp_path / "gone", "got none at"), (Path("a\0"), "x: ")):
        with pytest.raises(StackError, match=told):
            read_toml(path, "x")
    (tmp_path / "mark.toml").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(tmp_path / "mark.toml", "x") == {"a": 1}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT, TEXT, st.integers(1, 10_000), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, name: str, description: str, note: str, steps: int, at: float
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "x.toml"
    recipe = Recipe(name, description, steps=steps, stages={"cache": {"method": "svd"}}, notes={note: [note, at]})
    write_text(path, recipe_toml(recipe))
    assert load_recipe(str(path)) == recipe


def test_what_toml_has_no_word_for() -> None:
    for value, told in ((None, "cannot hold None"), (float("nan"), "cannot hold nan"), ("\udcff", "no Unicode text")):
        with pytest.raises(StackError, match=rf"^recipe x: cache.a: a file {told}|{told}"):
            toml_text({"cache": {"a": value}}, "recipe x")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:\\x", "\\\\host\\x", "..\\x", "", "a\0b"])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StackError, match="who: expected a file of its own folder, got"):
        inside(tmp_path, name, "who")
    assert inside(tmp_path, "a/b.x", "who") == tmp_path / "a" / "b.x"


def test_a_link_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_text("")
    (tmp_path / "in" / "x").symlink_to(tmp_path / "out")
    assert inside(tmp_path / "in", "x", "who").exists()
    with pytest.raises(StackError, match="is a link out of"):
        inside(tmp_path / "in", "x", "who", links=False)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), whole(path) as made:
        made.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["x.txt"]
    with pytest.raises(StackError, match="cannot write"):
        write_text(tmp_path / "gone" / "x", "")


def test_outputs_are_checked_without_leaving_anything(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("kept")
    check_file(tmp_path / "new", "--out")
    check_file(tmp_path / "f", "--out")
    check_folder(tmp_path / "a" / "b", "--out")
    for check, path in (
        (check_file, tmp_path), (check_file, tmp_path / "gone" / "x"), (check_file, tmp_path / ("x" * 300)),
        (check_folder, tmp_path / "f"), (check_folder, tmp_path / "f" / "g"), (check_folder, tmp_path / "a\0b"),
    ):  # fmt: skip
        with pytest.raises(StackError, match="--out: "):
            check(path, "--out")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "kept"


@pytest.mark.parametrize("kind", ["pipe", "link", "link to a device", "link to nothing"])
def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path, there = tmp_path / "x", tmp_path / "there"
    there.write_text("kept")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": there, "link to a device": "/dev/null", "link to nothing": "gone"}[kind])
    before = path.lstat()
    with pytest.raises(StackError, match=r"--out: expected the name of a plain file to write, got '"):
        check_file(path, "--out")
    assert path.lstat() == before and there.read_text() == "kept"


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "--out"):
        told = rf"--out: process {os.getpid()} is writing to"
        with pytest.raises(StackError, match=told), claimed(tmp_path / "out", "--out"):
            pass
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out").exists(), "made for it, and nothing was written"
    with claimed(tmp_path / "out", "--out"):
        (tmp_path / "out" / "kept").write_text("")
    assert os.listdir(tmp_path / "out") == ["kept"]


def test_the_lock_of_a_process_that_died_is_nobodys(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / LOCK).write_text(str(dead.pid))
    with claimed(tmp_path, "--out"):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK).exists()
