"""Context parallelism of diffusers: two processes come out where one does, step by step, under every kind of cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCHEDULED = [
    ("flux", "svd"),
    ("flux", "svd, refreshed"),
    ("flux", "noisy"),
    ("flux", "fora"),
    ("flux", "quantized"),
    ("wan", "svd"),
]
ADAPTIVE = [
    ("flux", "first-block"), ("flux", "easycache"), ("flux", "speca"), ("flux", "rfc"), ("flux", "max_error"),
    ("wan", "first-block"), ("qwen", "first-block"),
]  # fmt: skip
CASES = [*SCHEDULED, *ADAPTIVE]
ROUNDING = 3e-6  # of the largest latent, in float32, after 12 steps


@pytest.fixture(scope="module")
def both() -> list[Any]:
    """What each of the two processes has found."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.living.ranks"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, *command, json.dumps(CASES)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert not run.returncode, run.stderr[-3000:]
    found: list[Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_two_processes_come_out_where_one_does(case: tuple[str, str], both: list[Any]) -> None:
    one, other = (found["made"][CASES.index(case)] for found in both)
    assert one["off"] < ROUNDING and one["undone"] and other["undone"]
    assert one["output"] == other["output"], "bit for bit the same latents on both"
    alone, together = one["kinds"]
    assert together == alone == other["kinds"][1]
    assert set(alone) - {"f"} and "f" in alone, "some steps are cached, some run in full"


@pytest.mark.parametrize("case", [("flux", "first-block"), ("wan", "first-block"), ("qwen", "first-block")])
def test_a_process_that_went_by_its_own_tokens_would_decide_otherwise(case: tuple[str, str], both: list[Any]) -> None:
    """The figures of rule split-tokens."""
    made = [found["made"][CASES.index(case)] for found in both]
    assert [each["decided"] for each in made] == [22, 22]
    assert [each["otherwise"] for each in made] == {"flux": [1, 0], "wan": [2, 0], "qwen": [1, 0]}[case[0]]


def test_the_principal_subspace_of_a_wide_feature_is_that_of_all_tokens(both: list[Any]) -> None:
    assert [found["turned"] < 1e-5 for found in both] == [True, True]


def test_what_needs_all_tokens_is_refused_by_both(both: list[Any]) -> None:
    first, second = (found["said"] for found in both)
    assert first == second
    later, tokens, fastcache, band, sparse, measured = first
    assert later.startswith("enable_parallelism() on a model that carries cache: ") and "undo() the stack" in later
    for refusal in (tokens, fastcache, band):
        assert "the model carries tokens split over processes" in refusal and "(rule split-tokens)" in refusal
    assert "try: split='channels'" in band and "try: cache('svd')" in tokens
    assert "done: stays dense (rule split-tokens)" in sparse
    assert measured.startswith("cannot measure where processes share the tokens: expected one process")
