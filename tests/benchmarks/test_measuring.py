from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cachebench.attention import HeadByHead
from cachebench.bench import Bench as Bench_
from cachebench.bench import interval_for, pictures
from cachebench.measuring import Measured, count, full_steps, in_turn, judged, line_of, marks, work_of
from cachebench.quality import likeness, mean_likeness
from cachebench.record import Record, finished, known_quality, merge, plain
from cachebench.rows import Live, Row, fewer, preset
from cachebench.samples import Samples, distances, merged, motion

from stack import Stack
from stack.core.errors import StackError
from stack.measure.frechet import frechet_distance

from ..conftest import PROMPT, tiny_pipe

STEPS = 14


class Bench:
    """What rows ask of a bench, around a tiny pipeline."""

    def __init__(self) -> None:
        self.pipe, self.steps, self.texts = tiny_pipe(), STEPS, [PROMPT, "a green circle"]
        self.prompts, self.seeds = 2, range(3, 5)


def test_a_row_is_counted_whole() -> None:
    bench: Any = Bench()
    base = count(fewer(bench, STEPS, "base"), bench, PROMPT, 0)
    cached = count(preset(bench, "reuse", "reuse", interval=7), bench, PROMPT, 0)
    line = work_of(cached, base, bench)
    assert line["pattern"] == "FFF......F...." and line["full"] == 4
    assert line["work"] == pytest.approx(4 / 14, abs=0.02) and line["work"] > 4 / 14
    fewer_line = work_of(count(fewer(bench, 2, "euler"), bench, PROMPT, 0), base, bench)
    assert (fewer_line["full"], fewer_line["calls"]) == (2, 2)
    assert fewer_line["work"] == pytest.approx(2 / 14, abs=1e-3)  # the prompt is encoded once in both
    assert not Stack(bench.pipe).applied and bench.pipe.scheduler.__class__.__name__.startswith("FlowMatchEuler")


def test_the_state_that_is_measured_is_what_the_cache_reports() -> None:
    bench: Any = Bench()
    with Stack(bench.pipe, steps=STEPS).cache("taylorseer", interval=5) as stack:
        pictures(stack, PROMPT, STEPS, 0)
        figures = stack.report().passes["cache"]
        reported = figures["bytes"] + figures["table_bytes"]
    state = count(preset(bench, "taylorseer", "taylorseer", interval=5), bench, PROMPT, 0).state
    assert reported > 100_000 and state == pytest.approx(reported, rel=0.05)


def test_a_refusal_is_told_not_raised() -> None:
    bench: Any = Bench()
    found = count(preset(bench, "svd", "svd", full_steps=(1, 2), steps=STEPS), bench, PROMPT, 0)
    assert found.refusal.startswith("not supported by svd: StackError: full_steps must hold 0")
    line = line_of(found, found)
    assert line["rounds"] == 0 and line["note"] == found.refusal and "psnr" not in line


def timed(row: str, seconds: list[float], flops: int, calls: int = 10) -> Measured:
    def never() -> Any:
        raise AssertionError

    return Measured(Row(row, "preset", row, {}, never), seconds=seconds, known={"work": flops / 1000, "calls": calls})


def test_speedups_are_ratios_within_a_round() -> None:
    base = timed("base", [10.0, 20.0, 10.0], 1000)
    line = line_of(timed("x", [2.0, 4.0, 5.0], 100), base)
    assert line["speedup"] == 5.0  # not 10 / 4, of medians
    assert line["seconds"] == 4.0 and line["work"] == 0.1
    assert line["overhead_ms"] == pytest.approx(1e3 * 2.0 / 10)  # 2 s of the median round beyond a tenth of the base
    assert line_of(timed("x", [], 100), base)["speedup"] is None


def test_rows_take_turns_and_prompts_rotate() -> None:
    bench, asked = Bench(), []

    def row(name: str) -> Measured:
        @contextmanager
        def using() -> Any:
            def run(texts: str, **_: Any) -> list[torch.Tensor]:
                asked.append((name, texts))
                return [torch.zeros(1, 3, 4, 4)]

            yield Live(run, torch.nn.Identity())

        return Measured(Row(name, "preset", name, {}, using))

    done: list[int] = []
    rows = [row("a"), row("b")]
    in_turn(rows, bench, 3, lambda *_: None, lambda: done.append(len(asked)))  # type: ignore[arg-type]  # stand-ins
    first, second = bench.texts
    assert asked == [("a", first), ("b", first), ("a", second), ("b", second), ("a", first), ("b", first)]
    assert done == [2, 4, 6] and [len(r.seconds) for r in rows] == [3, 3]


def test_judged_pictures_are_made_a_few_at_a_time_each_with_its_own_seed() -> None:
    bench, asked = Bench(), []
    bench.texts, bench.prompts, bench.seeds = [f"text {i}" for i in range(10)], 10, range(3, 13)

    @contextmanager
    def using() -> Any:
        def run(texts: list[str], generator: list[torch.Generator], **_: Any) -> list[torch.Tensor]:
            asked.append((texts[0], [g.initial_seed() for g in generator]))
            return [torch.zeros(len(texts), 3, 4, 4)]

        yield Live(run, torch.nn.Identity())

    assert judged(Row("a", "preset", "a", {}, using), bench).shape == (10, 3, 4, 4)  # type: ignore[arg-type]  # a stand-in
    assert asked == [("text 0", [*range(3, 11)]), ("text 8", [11, 12])]


def test_likeness_is_told_by_the_median_the_flipped_and_all_together() -> None:
    reference = torch.zeros(3, 3, 8, 8)
    pictures = reference + torch.tensor([0.1, 0.01, 0.001]).view(3, 1, 1, 1)
    found = likeness(pictures, reference)
    assert found["each"] == [20.0, 40.0, 60.0] and found["median"] == pytest.approx(40.0)
    assert found["flipped"] == pytest.approx(1 / 3) and found["psnr"] == pytest.approx(24.73, abs=0.01)
    assert mean_likeness(pictures, reference) == pytest.approx(40.0)


@pytest.mark.parametrize("model", ["shapes-flux", "shapes-video", "shapes-dit"])
def test_what_is_judged_is_never_fitted_on(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench_, "load", lambda self, dtype=None: None)
    bench = Bench_(model, 50, (12, 9), 16, 3, 24)
    searched, held = bench.fitting()
    assert len(set(bench.texts)) == 16 == len(set(bench.seeds)) and not {*bench.texts} & {*searched, *held}
    assert (len(searched), len(held)) == bench.fitted_on and bench.usual == 9
    with pytest.raises(StackError, match="try fewer --prompts"):
        Bench_("shapes-dit", 50, (9,), 25, 3, 24)


def test_what_was_judged_before_is_not_judged_again() -> None:
    line = {"row": "a", "settings": {"count": 9}, "median": 40.0, "work": 0.2, "rounds": 1, "speedup": 4.0}
    assert known_quality([line], "a", {"count": 9}) == {
        "row": "a", "settings": {"count": 9}, "median": 40.0, "work": 0.2,
    }  # fmt: skip
    assert not known_quality([line], "a", {"count": 6})
    assert not known_quality([{"row": "a", "settings": {}, "note": "not supported"}], "a", {})


def test_steps_as_letters() -> None:
    assert marks([100, 99, 50, 5], 100) == "FFp."
    assert full_steps([100] * 20 + [5] * 80, 100, 50) == 10  # two calls a step


@pytest.mark.parametrize(("full", "interval"), [(12, 5), (10, 6), (9, 7), (8, 8)])
def test_intervals_of_the_published_counts(full: int, interval: int) -> None:
    assert interval_for(full, 50) == interval


def test_new_lines_replace_their_own() -> None:
    old = [{"row": "a", "psnr": 1}, {"row": "b", "psnr": 2}]
    assert merge(old, [{"row": "c", "psnr": 3}, {"row": "a", "psnr": 4}]) == [
        {"row": "a", "psnr": 4}, {"row": "b", "psnr": 2}, {"row": "c", "psnr": 3},
    ]  # fmt: skip


def test_a_row_is_run_again_only_where_it_must() -> None:
    lines = [
        {"row": "a", "settings": {"full_steps": [0, 3]}, "rounds": 4},
        {"row": "b", "settings": {}, "rounds": 0, "note": "not supported"},
    ]
    assert finished(lines, "a", {"full_steps": (0, 3)}, 4)
    assert not finished(lines, "a", {"full_steps": (0, 3)}, 5)
    assert not finished(lines, "a", {"full_steps": (0, 4)}, 4)
    assert finished(lines, "b", {}, 4) and not finished(lines, "c", {}, 0)


def test_a_record_goes_on_and_refuses_another_protocol(tmp_path: Path) -> None:
    path, asked = tmp_path / "x.json", []
    record = Record.open(path, {"steps": 50, "counts": (9,)})
    assert record.remember("k", lambda: asked.append(1) or (1, 2)) == [1, 2]
    again = Record.open(path, {"steps": 50, "counts": (9,)})
    assert again.remember("k", lambda: asked.append(2)) == [1, 2] and asked == [1]
    with pytest.raises(StackError, match="other steps"):
        Record.open(path, {"steps": 20, "counts": (9,)})
    assert Record.open(path, {"steps": 20, "counts": (9,)}, fresh=True).prepared == {}
    assert json.loads(path.read_text())["prepared"] == {"k": [1, 2]}


def test_samples_are_kept_batch_by_batch(tmp_path: Path) -> None:
    path, batches = tmp_path / "d" / "base.pt", torch.randn(3, 5, 4).unbind()
    kept = Samples.open(path, {"steps": 50})
    for batch in batches:
        kept.append(batch)
    again = Samples.open(path, {"steps": 50})
    assert again.count == 15 and again.features is not None and torch.equal(again.features, torch.cat(batches))
    with pytest.raises(StackError, match="other settings"):
        Samples.open(path, {"steps": 20})


def test_distances_compare_equal_numbers() -> None:
    own, base = torch.randn(20, 3), torch.randn(40, 3)
    line = distances("x", own, {"same": base, "drawn": own, "others": base[:10]})
    assert line["same"] == pytest.approx(frechet_distance(own, base[:20]))
    assert line["drawn"] == pytest.approx(0.0, abs=1e-6) and "t_same" not in line
    assert line["others"] is None


def test_clips_have_a_distance_of_motion() -> None:
    clips, shifted = torch.randn(20, 4, 3), torch.randn(1, 1, 3)
    line = distances("x", clips, {"same": clips + shifted})
    assert motion(clips).shape == (60, 3)
    assert line["same"] > 0.1 and line["t_same"] == pytest.approx(0.0, abs=1e-5)  # a constant offset does not move


def test_a_record_of_distances_keeps_its_other_rows(tmp_path: Path) -> None:
    path, protocol = tmp_path / "fid.json", {"steps": 50, "counts": (9,)}
    path.write_text(json.dumps({"protocol": plain(protocol), "rows": [{"row": "base"}, {"row": "svd", "same": 9.0}]}))
    again = [{"row": "svd", "same": 3.0}, {"row": "duca", "same": 4.0}]
    assert merged(path, protocol, again) == [{"row": "base"}, *again]
    assert merged(path, protocol | {"steps": 20}, again) == again


@pytest.mark.parametrize("mask_of", [None, (2, 1, 1, 9), (1, 1, 1, 9), (2, 1, 7, 9), (7, 9)])
def test_attention_head_by_head_is_torchs(mask_of: tuple[int, ...] | None) -> None:
    query = torch.randn(2, 3, 7, 8)
    key, value = torch.randn(2, 2, 3, 9, 8)
    mask = None if mask_of is None else torch.rand(mask_of) > 0.4
    if mask is not None:
        mask[..., 0] = True  # a query that sees nothing has no softmax
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with HeadByHead():
        made = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=False)
        causal = torch.nn.functional.scaled_dot_product_attention(query, key[:, :, :7], value[:, :, :7], is_causal=True)
    torch.testing.assert_close(made, expected)
    assert not torch.allclose(causal[:, :, 0], made[:, :, 0])  # not taken for an ordinary call
    torch.testing.assert_close(causal[:, :, 0], value[:, :, 0])
