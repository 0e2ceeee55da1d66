"""Bad command lines, run in this process: exit code 2 and one line, or 0; never a traceback.

python -m tests.fuzz.commands --count 1000 --seed 0
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path

from huggingface_hub import constants

from stack.cli import main as ditstack
from tests.conftest import tiny_pipe

from .mutate import mutant
from .tally import Tally, main

RECIPE = 'name = "mine"\nsteps = 3\n[cache]\ninterval = 2\nwarmup = 1\n'
CARD = (
    'model = "a/b"\nsteps = 4\n[schedule]\nkind = "sigmas"\nsigmas = [1.0, 0.7, 0.5, 0.2]\n[licence]\nweights = "MIT"\n'
)
COMMANDS = ("compare", "run", "explain", "calibrate", "models", "recipes", "adapters", "rules")
NUMBERS = (
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "many", "", "9" * 30, "9" * 5000, "0x10", "\u0663", "1_0", "true",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "a photo of a cat", "a red rings", "\x00", "a\nb", "'\"", "\u2028", "\udcff", "x" * 5000, "--", "-x",
    "{}", "../x", "/", ".", "~", "a/b/c", "a b/c", "shapes-flx", "balancd", "tea-cache", "%s", "\x1b[31m",
)  # fmt: skip
DEVICES = ("tv", "cuda:99", "cuda:x", "cpu:7", "meta", "mps", "", "cuda:-1", "CPU", "cpu:", "\x00")
OPTIONS = {
    "compare": (
        "--model", "--prompt", "--prompts-file", "--prompts", "--steps", "--seed", "--out", "--device", "--size",
        "--frames", "--guidance", "--negative-prompt", "--call", "--lora",
    ),
    "run": (
        "--model", "--prompt", "--prompts-file", "--out", "--steps", "--seed", "--device", "--guidance", "--call",
        "--lora",
    ),
    "explain": ("--model", "--steps", "--device", "--size", "--frames", "--assume", "--config"),
    "calibrate": (
        "--model", "--full-steps", "--min-psnr", "--max-seconds", "--prompts-file", "--budget", "--seed", "--out",
        "--device",
    ),
    "models": (), "recipes": ("--write",), "adapters": ("--folder",), "rules": ("--write",),
}  # fmt: skip
ARGUMENTS = ("compare", "run", "explain", "calibrate", "rules")
PATHS = ("--out", "--prompts-file", "--folder", "--write", "--config", "--lora")
CALLS = (
    "{}",
    "[]",
    "3",
    "{",
    '{"guidance_scale": "x"}',
    '{"generator": 1}',
    '{"image": "gone.png"}',
    '{"1": {"2": []}}',
)


def fuzz(count: int, seed: int) -> Tally:
    """So many command lines, in a folder of their own."""
    rng, tally, before = random.Random(seed), Tally(), Path.cwd()
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    with tempfile.TemporaryDirectory() as name:
        inner = Path(name) / "inner" / "here"  # names such as ../x stay within the temporary folder
        inner.mkdir(parents=True)
        _things(inner)
        os.chdir(inner)
        try:
            for number in range(count):
                (inner / "mine.toml").write_text(RECIPE)  # an earlier line may have been told to write there
                (inner / "mutant.toml").write_bytes(mutant(RECIPE, rng))
                (inner / "cards" / "mutant.toml").write_bytes(mutant(CARD, rng))
                _run(tally, number, _line(rng))
        finally:
            os.chdir(before)
            constants.HF_HUB_OFFLINE = offline
    return tally


def _things(folder: Path) -> None:
    """A model, a recipe, and what may be taken for one."""
    tiny_pipe().save_pretrained(folder / "model")
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "latin.toml").write_bytes('name = "\u00e9"'.encode("latin-1"))
    (folder / "empty.toml").write_text("")
    (folder / "folder.toml").mkdir()
    (folder / "cards").mkdir()
    (folder / "prompts.txt").write_text("a red ring\na blue star\na green circle\n")
    (folder / "cats.txt").write_text("a cat\na dog\na cow\n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for name, index in (("broken", "{"), ("list", "[1]"), ("odd", '{"_class_name": 3}'), ("none", "{}")):
        (folder / name).mkdir()
        (folder / name / "model_index.json").write_text(index)


def _line(rng: random.Random) -> list[str]:
    """A command with one bad value at least, on a small model."""
    command = rng.choice((*COMMANDS, "compare", "run", "explain", "calibrate"))
    if rng.random() < 0.05:
        return [rng.choice((command[:-1], command + "s", *TEXTS)), *rng.sample(TEXTS, rng.randrange(3))]
    line, options = [command], OPTIONS[command]
    if command in ARGUMENTS:
        things = ("mine.toml", "latin.toml", "empty.toml", "folder.toml", "mutant.toml", "gone.toml", "model", *TEXTS)
        line.append("mine.toml" if command != "rules" and rng.random() < 0.7 else rng.choice(things))
    given = {"--model": "model", "--steps": "3"}
    if command in ("compare", "calibrate"):
        given["--out"] = rng.choice(("mine.toml", "mine.toml/x", "/proc/x"))
    for option in rng.sample(options, min(len(options), rng.choice((1, 1, 1, 1, 2, 3)))):
        given[option] = _value(option, rng)
    if command in ("compare", "calibrate") and rng.random() < 0.5:
        given["--steps" if command == "compare" else "--budget"] = rng.choice(NUMBERS)
        given.pop("--out")
    for option, value in given.items():
        line += [option, value] if option in options else []
    if rng.random() < 0.1:
        line.insert(rng.randrange(len(line) + 1), rng.choice((*TEXTS, "--nothing", "--stepps", "--no-compile=3")))
    return line


def _value(option: str, rng: random.Random) -> str:
    if option == "--model":
        return rng.choice(("broken", "list", "odd", "none", "mine.toml", *TEXTS))
    if option == "--call":
        return rng.choice((*CALLS, *TEXTS))
    if option == "--device":
        return rng.choice(DEVICES)
    if option in PATHS:
        return rng.choice(
            (
                "mine.toml",
                "mine.toml/x",
                "/nope/x",
                "/proc/x",
                "model",
                "cards",
                "cards",
                "cats.txt",
                "bytes.txt",
                *TEXTS,
            )
        )
    return rng.choice(TEXTS if option in ("--prompt", "--negative-prompt", "--size") else NUMBERS)


def _run(tally: Tally, number: int, line: list[str]) -> None:
    out, told, code, case = io.StringIO(), io.StringIO(), None, f"case {number}: {line!r}"[:2000]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            ditstack(line)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # everything else is what the fuzzer looks for
        tally.tracebacks.append(f"{case}\n{traceback.format_exc()}")
        return
    *_, error = ["", *told.getvalue().splitlines(keepends=True)]  # before it may stand what was being done
    one_line = error.startswith("error: ") and error.endswith("\n") and error[:-1].isprintable()
    if code == 0:
        tally.accepted += 1
    elif code == 2 and one_line:
        tally.refused += 1
    else:
        tally.tracebacks.append(f"{case}\nexit {code}: {error!r}")


if __name__ == "__main__":
    sys.exit(main(fuzz, 1000))
