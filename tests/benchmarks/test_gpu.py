"""The prepared GPU check: its dry run, what survives an interruption, and its page from rows made up here."""

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
from gpu.cases import DRY, EXCLUDED_BACKENDS, EXCLUDED_PRESETS, EXCLUDED_SCHEMES, HOPPER, cases
from gpu.flux import AT_28, HEADLINE, large_rows, wholes
from gpu.journal import Journal, is_measured, newest
from gpu.page import page
from gpu.references import References, tiles_of_cuda
from gpu.runner import ContextLost, Row, Runner
from gpu.setting import Setting
from gpu.targets import base_of, speedup, targets
from gpu.timing import host_times
from gpu_check import measure
from gpu_page import main as write_page
from gpu_page import name_of, record_of

from stack.attention.maps import cut
from stack.caching.methods import PRESETS
from stack.core.errors import StackError
from stack.quant.backends import BACKENDS
from stack.quant.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
CPU = Setting(torch.device("cpu"), tiny=True, compiled=False, references=Path("none"))
H200 = {"device": "cuda", "vector": "NVIDIA H200", "capability": [9, 0]}


def whole(row: str, seconds: float, steps: int = 50, part: str = "flux", **more: Any) -> dict[str, Any]:
    return {"part": part, "row": row, "seconds": seconds, "steps": steps, "host_cached_ms": None, "base": "", **more}


ROWS = [
    whole("base, eager", 7.0, base="eager"),
    whole("compiled", 6.0, base="compiled"),
    whole("compiled + cuDNN", 5.0, base="compiled"),
    whole(HEADLINE, 0.5, host_cached_ms=0.75),
    whole(AT_28, 0.4, steps=28),
    whole("compiled + Sage", 0.5, steps=10),
    whole("base, eager", 3.0, steps=6, part="large", base="eager"),
    whole("sparse 0.5", 2.0, steps=6, part="large"),
    {"part": "flux", "row": "int8", "error": "ValueError: no\nmore", "where": ["a.py:1 f", "b.py:2 g"]},
    {"part": "smoke", "row": "fp8", "skipped": "3 s left, 5 s wanted"},
]


def runner(folder: Path, budget: float = 60.0, **more: Any) -> Runner:
    return Runner(Journal(folder), CPU, budget, **more)


def row(name: str, work: Callable[[], dict[str, Any]], seconds: float = 1.0, **more: Any) -> Row:
    return Row("flux", name, seconds, work, **more)


@pytest.mark.slow
def test_the_dry_run_from_the_command_line_to_the_page(tmp_path: Path) -> None:
    wanted = ["base", "int8 + sparse + predictor-corrector", "Sage*", "sparse*", HEADLINE, "base, eager"]
    wanted += ["compiled + cuDNN", "compiled + cuDNN + cache-dit*"]
    chosen = [word for name in wanted for word in ("--rows", name)]
    dry = ["benchmarks/gpu_check.py", "--device", "cpu", "--tiny", "--out", str(tmp_path), *chosen]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *dry], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in Journal(tmp_path).lines() if "row" in line]
    assert [line for line in lines if "error" in line] == []
    found = {(line["part"], line["row"]): line for line in lines}
    assert found["smoke", "base"]["repeats"] and found["smoke", "base"]["undone"]
    assert found["smoke", "int8 + sparse + predictor-corrector"]["kinds"] == "FcccFcccFcFc"
    assert found["flux", HEADLINE]["full"] == 4 and found["flux", HEADLINE]["host_cached_ms"] > 0
    assert found["flux", "base, eager"]["full"] == found["flux", "base, eager"]["steps"] == 12
    assert found["flux", "compiled + cuDNN + cache-dit F1B0, Taylor 1"]["full"] == 4
    assert found["large", "Sage"]["finite"]
    assert f"done: {len(lines)} rows written now" in done.stdout

    write_page([tmp_path], tmp_path)
    record = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert set(record) >= {"machine", "versions", "rows", "targets"} and len(record["rows"]) == len(lines)
    text = (tmp_path / "gpu.md").read_text()
    ours, eager = found["flux", HEADLINE], found["flux", "base, eager"]
    assert "A dry run" in text and f"{eager['seconds'] / ours['seconds']:.2f}x" in text


def test_speedups_and_targets_are_computed_from_the_rows() -> None:
    base = base_of(ROWS, "flux", "compiled")
    assert base is not None and base["row"] == "compiled + cuDNN"  # the faster of the two
    assert speedup(ROWS[3], ROWS, "compiled") == pytest.approx(10.0)
    assert speedup(ROWS[5], ROWS, "eager") == pytest.approx(140 / 50)  # by the step: 10 steps here, 50 in the base
    assert speedup(ROWS[7], ROWS, "eager") == pytest.approx(1.5)  # within its own part
    assert speedup(ROWS[7], ROWS, "compiled") is None
    known, missing = targets(ROWS)
    assert [(t.value, t.met) for t in known] == [
        (pytest.approx(10.0), True), (pytest.approx(14.0), True), (0.4, True), (0.75, False)
    ]  # fmt: skip
    assert missing == []
    assert len(targets(ROWS[:3])[1]) == 4


def test_the_page_shows_figures_errors_and_what_is_missed() -> None:
    record = {"machine": H200, "versions": {"torch": "2.11"}, "tiny": False, "rows": ROWS, "targets": []}
    text = page([record])
    ours = next(line for line in text.splitlines() if line.startswith(f"| {HEADLINE} |"))
    assert "14.00x | 10.00x" in ours
    assert f"| {HEADLINE}: own host time per cached step, ms | 0.75 | <= 0.5 | **missed** |" in text
    assert f"| {HEADLINE}: over the fastest compiled base | 10 | >= 8 | met |" in text
    assert "- int8: **ValueError: no** (b.py:2 g)" in text and "- fp8: skipped, 3 s left, 5 s wanted" in text
    assert "NVIDIA H200" in text and "dry run" not in text


def test_without_a_record_the_page_says_so() -> None:
    text = page([])
    assert "Nothing was measured on a GPU yet:" in text and "benchmarks/gpu/README.md" in text


def test_a_row_without_time_left_is_skipped_and_says_how_much_there_was(tmp_path: Path) -> None:
    runner(tmp_path, budget=0.5).run([row("long", lambda: {"ms": 1.0}), row("no GPU", lambda: {}, needs_gpu=True)])
    told = {line["row"]: line["skipped"] for line in Journal(tmp_path).lines()}
    assert told == {"long": "0 s left, 1 s wanted", "no GPU": "needs a GPU"}


def test_an_error_becomes_a_row_and_the_next_call_tries_it_again(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("out of luck")

    runner(tmp_path).run([row("bad", fails), row("good", lambda: {"ms": 2.0})])
    bad, good = Journal(tmp_path).lines()
    assert bad["error"] == "ValueError: out of luck" and bad["where"][-1].endswith(" fails") and good["ms"] == 2.0
    again = runner(tmp_path)
    again.run([row("bad", lambda: {"ms": 3.0}), row("good", fails)])
    assert again.written == 1  # the good one was not measured again
    assert {line["row"]: line["ms"] for line in newest(Journal(tmp_path).lines())} == {"bad": 3.0, "good": 2.0}
    runner(tmp_path, again=True).run([row("good", fails)])
    assert newest(Journal(tmp_path).lines())[1]["ms"] == 2.0  # an error does not hide what was measured


def test_an_interrupted_run_keeps_its_rows_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> dict[str, Any]:
        raise KeyboardInterrupt

    rows = [row("first", lambda: {"ms": 1.0}), row("second", stopped), row("third", lambda: {"ms": 3.0})]
    monkeypatch.setitem(sys.modules["gpu_check"].PARTS, "flux", lambda setting: iter(rows))
    measure(CPU, ["flux"], Journal(tmp_path), 60.0, (), False)
    assert "stopped: 2 rows written now, 1 measurements" in capsys.readouterr().out
    with Journal(tmp_path).path.open("a") as file:
        file.write('{"part": "flux", "row": "cut o')  # killed while it wrote
    Journal(tmp_path).add({"part": "flux", "row": "later", "ms": 4.0})
    record = record_of(tmp_path)
    assert [(line["row"], is_measured(line)) for line in record["rows"]] == [
        ("first", True), ("second", False), ("later", True)
    ]  # fmt: skip


def test_rows_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    Journal(tmp_path).start(H200, {}, False)
    with pytest.raises(StackError, match="holds rows of NVIDIA H200: expected the same machine"):
        Journal(tmp_path).start(H200 | {"vector": "NVIDIA H100"}, {}, False)
    with pytest.raises(StackError, match=r"expected .*rows\.jsonl"):
        record_of(tmp_path / "nothing")
    assert name_of(H200 | {"vector": "NVIDIA H100 80GB HBM3"}) == "gpu-h100-80gb-hbm3"


def test_a_lost_device_ends_the_run_after_its_row_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access")

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    on_gpu = Setting(torch.device("cuda"), False, False, Path("none"))
    with pytest.raises(ContextLost, match=r"illegal memory access\)?$"):
        Runner(Journal(tmp_path), on_gpu, 60.0).run([row("bad", fails), row("next", lambda: {})])
    assert [line["row"] for line in Journal(tmp_path).lines()] == ["bad"]


def test_every_preset_and_every_scheme_of_every_backend_is_in_smoke_or_left_out_with_a_reason() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) and set(DRY) <= set(names)
    for preset in PRESETS:
        assert (f"cache {preset}" in names) != bool(EXCLUDED_PRESETS.get(preset)), preset
    for scheme, of in SCHEMES.items():
        for name, backend in BACKENDS.items():
            reason = EXCLUDED_BACKENDS.get(name) or EXCLUDED_SCHEMES.get((scheme, name)) or backend.refuses(of, HOPPER)
            assert (f"{scheme} {name}" in names) != bool(reason), (scheme, name)


def test_every_large_row_and_every_flux_row_has_a_name_of_its_own() -> None:
    for names in ([way.name for way in wholes(CPU)], [each.name for each in large_rows(CPU)]):
        assert len(set(names)) == len(names)
    assert [way.name for way in wholes(CPU)][3:5] == [HEADLINE, AT_28]  # right behind what they are held against


def test_references_keep_half_precision_and_know_what_they_belong_to(tmp_path: Path) -> None:
    path, latent = tmp_path / "refs.safetensors", torch.rand(1, 64, 12) * 2 - 1
    References({"steps": 20, "size": 64}, {"base": latent}).save(path)
    held = References.load(path, {"steps": 20, "size": 64})
    assert held.compare("base", "base", latent) == {"psnr": pytest.approx(85, abs=1), "against": "its own"}
    off = held.compare("fp8", "base", latent + 0.02)["psnr"]
    assert off == pytest.approx(40, abs=0.2)  # 0.02 of [-1, 1] is 1 % of a picture
    assert held.compare("fp8", "base", latent)["against"] == "the base"
    assert held.compare("fp8", "none", latent) == {"psnr": None, "against": "nothing"}
    with pytest.raises(StackError, match="make them again with --references"):
        References.load(path, {"steps": 12, "size": 64})
    with tiles_of_cuda():
        assert cut(1024, 16, None, "cpu").key == 128 and cut(1024, 16, None, "cpu").group == 1
    assert cut(1024, 16, None, "cpu").key == 64


def test_host_times_counts_calls_and_leaves_no_hooks() -> None:
    linear = torch.nn.Linear(4, 4)
    with host_times(linear) as seconds:
        for _ in range(3):
            linear(torch.zeros(1, 4))
    linear(torch.zeros(1, 4))
    assert len(seconds) == 3 and min(seconds) > 0
    assert not linear._forward_hooks and not linear._forward_pre_hooks


def test_late_rows_wait_for_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str) -> Callable[[Setting], Any]:
        rows = [Row(name, "late", 1.0, dict, late=True), Row(name, "early", 1.0, dict)]
        return lambda setting: iter(rows)

    for name in ("flux", "large"):
        monkeypatch.setitem(sys.modules["gpu_check"].PARTS, name, part(name))
    measure(CPU, ["flux", "large"], Journal(tmp_path), 60.0, (), False)
    ran = [(line["part"], line["row"]) for line in Journal(tmp_path).lines() if "row" in line]
    assert ran == [("flux", "early"), ("large", "early"), ("flux", "late"), ("large", "late")]
