"""`compare` and `run` on one's own prompts, adapters and call arguments; and going on after Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stack import StackError
from stack.attention.sparse_attn import SparseAttention
from stack.comparison.engine import PipelineEngine
from stack.comparison.kept import KeptPictures, folder_of, key_of
from stack.comparison.rows import Generation, Row
from stack.quant.quantize import Quantize
from stack.reference.pipeline import ShapesFluxPipeline
from stack.runtime.step import Computed
from stack.solver.solver import Solver

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--steps", "6", "--no-compile", "--device", "cpu")


@pytest.fixture
def line(folder: Path) -> list[Any]:
    """A small comparison of the folder's recipe and model."""
    return ["compare", folder / "mine.toml", "--model", folder / "model", "--out", folder / "out", *QUICK]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the pipeline is called with, in order."""
    seen: list[dict[str, Any]] = []
    inner = ShapesFluxPipeline.__call__

    def spied(self: Any, prompt: Any = None, **given: Any) -> Any:
        seen.append({"prompt": prompt, **given})
        return inner(self, prompt, **given)

    monkeypatch.setattr(ShapesFluxPipeline, "__call__", spied)
    return seen


def record_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "compare.json").read_text()))


def test_prompts_and_arguments_of_one_s_own_reach_every_call(
    run: Run, folder: Path, line: list[Any], calls: list[dict[str, Any]]
) -> None:
    (folder / "prompts.txt").write_text("a red ring\n\na blue star\na green circle\n")
    more = ["--prompts-file", folder / "prompts.txt", "--prompts", "2", "--guidance", "2.5"]
    code, _, err = run(*line, *more, "--call", '{"max_sequence_length": 16}')
    assert code == 0, err
    record = record_in(folder)
    assert record["prompts"] == ["a red ring", "a blue star"]
    assert record["call"] == {"guidance_scale": 2.5, "max_sequence_length": 16}
    assert {call["guidance_scale"] for call in calls} == {2.5} and {call["max_sequence_length"] for call in calls} == {
        16
    }
    assert {call["prompt"] for call in calls} == {"a red ring", "a blue star"}
    rows = {row["name"]: row for row in record["rows"]}
    low, high = rows["all"]["psnr_db_95"]
    assert len(rows["all"]["psnr_db_each"]) == 2 and low < rows["all"]["psnr_db"] < high
    assert rows["all"]["speedup_95"][0] < rows["all"]["speedup"] < rows["all"]["speedup_95"][1]


def test_the_same_command_goes_on_where_it_was_stopped(
    run: Run, folder: Path, line: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, made = PipelineEngine.generate, []
    stop_at = 3

    def counted(self: Any, row: Row, prompt: str, seed: int) -> Generation:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append((row.name, seed))
        return inner(self, row, prompt, seed)

    monkeypatch.setattr(PipelineEngine, "generate", counted)
    assert run(*line, "--prompts", "2")[0] == 130
    first = record_in(folder)
    assert first["partial"] is True and first["verdict"].startswith("so far: ")
    stop_at = 1000
    code, _, err = run(*line, "--prompts", "2")
    assert code == 0, err
    assert len(made) == len(set(made)) == 2 * 4  # base, all and two controls: none of them twice
    record = record_in(folder)
    times = {row["name"]: row["seconds_all"] for row in record["rows"]}
    assert times["base"][0] == first["rows"][0]["seconds_all"][0] and len(times["base"]) == 2
    assert not (folder / "out" / ".ditstack-parts").exists()
    code, out, _ = run(*line, "--prompts", "2")
    assert code == 0 and "was measured before, --fresh measures anew: " in out and len(made) == 8
    code, _, err = run(*line, "--prompts", "1")  # another question
    assert code == 2 and "holds another comparison (--fresh writes over it): choose another folder" in err
    assert record_in(folder) == record and len(made) == 8
    assert run(*line, "--prompts", "1", "--fresh")[0] == 0 and len(made) == 12
    assert len(record_in(folder)["prompts"]) == 1


def test_a_kept_picture_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    row = Row("a/b @ c", "stack", "all", "r", ("cache",), 7)
    made = Generation(
        torch.rand(3, 4, 4), 1.5, ("full", "cached"), 0.5, 12, 34, ("careful",), (Computed(), Computed(0.0, 0.0, 1.0))
    )
    kept = KeptPictures.at(tmp_path, "key")
    kept.save(row, 3, made)
    again = KeptPictures.at(tmp_path, "key").load(row, 3)
    assert again is not None and torch.equal(again.picture, made.picture)
    assert {**vars(again), "picture": 0} == {**vars(made), "picture": 0}
    assert kept.load(Row("a/b @ c", "stack", "all", "r", ("cache",), 8), 3) is None and kept.load(row, 4) is None
    next(path for path in kept.folder.iterdir() if path.suffix == ".safetensors").write_bytes(b"cut off")
    assert kept.load(row, 3) is None
    kept.save(row, 3, made)
    assert KeptPictures.at(tmp_path, "another key").load(row, 3) is None


def test_without_a_name_a_comparison_takes_the_next_folder_that_holds_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, second, third = (Path(f"ditstack-compare{number}") for number in ("", "-2", "-3"))

    def taken(key: str, fresh: bool = False) -> Path:
        return folder_of(base, True, key, fresh)

    assert taken("a") == base and not base.exists()
    KeptPictures.at(base, "a")  # stopped on its way
    second.mkdir()
    (second / "compare.json").write_text(json.dumps({"key": "b", "partial": False}))
    assert (taken("a"), taken("b"), taken("c")) == (base, second, third)
    assert (taken("a", True), taken("b", True), taken("c", True)) == (base, second, third)
    (second / "compare.json").write_text("cut off")
    assert taken("b") == third
    assert folder_of(base, False, "a", False) == folder_of(base, False, "b", True) == base
    with pytest.raises(StackError, match=r"^--out: ditstack-compare holds another comparison \(--fresh writes over"):
        folder_of(base, False, "b", False)


def test_equal_questions_have_equal_keys_also_with_tensors() -> None:
    tensor = torch.arange(4.0)
    assert key_of({"call": {"x": tensor}}) == key_of({"call": {"x": tensor.clone()}})
    assert key_of({"call": {"x": tensor}}) != key_of({"call": {"x": tensor + 1}})


def test_passes_that_differ_in_what_was_fitted_are_different_questions() -> None:
    """Also in what they do not print: shares of blocks, weights of a solver."""
    shares = [{"a": (0.5, 0.5, share)} for share in (0.5, 0.6)]
    weights = [((0.0, share),) for share in (0.0, 0.1)]
    for first, same, other in (
        [SparseAttention(layers=shares[i]) for i in (0, 0, 1)],
        [Solver(places=(0,), of=20, corrections=weights[i]) for i in (0, 0, 1)],
        [Quantize("int8"), Quantize("int8"), Quantize("int8-weight")],
    ):
        assert key_of({"passes": [first]}) == key_of({"passes": [same]}) != key_of({"passes": [other]})


def test_progress_is_told_line_by_line_into_a_pipe(run: Run, line: list[Any], folder: Path) -> None:
    code, _, err = run(*line, "--prompts", "1")
    assert code == 0
    first, *rest = err.splitlines()
    assert first == f"compare: loading {folder / 'model'}, 0 s so far"
    assert any(text.startswith("compare: base: first steps, ") for text in rest)
    assert any(text.startswith("compare: pictures 0 of ") for text in rest)


def test_json_is_all_that_is_printed(run: Run, line: list[Any], folder: Path) -> None:
    code, out, _ = run(*line, "--prompts", "1", "--json")
    assert code == 0 and json.loads(out) == record_in(folder)
    code, out, _ = run(
        "run",
        folder / "mine.toml",
        "--model",
        folder / "model",
        "--prompt",
        "a red ring",
        "--out",
        folder / "p",
        "--json",
    )
    (made,) = json.loads(out)
    assert code == 0 and made["path"] == str(folder / "p" / "000-a-red-ring.png")
    assert made["report"]["full_steps"] == 5 and [step["step"] for step in made["report"]["steps"]] == [*range(14)]


def test_the_markdown_table_is_the_figures(run: Run, line: list[Any], folder: Path) -> None:
    assert run(*line, "--prompts", "1")[0] == 0
    record, text = record_in(folder), (folder / "out" / "table.md").read_text()
    assert f"**Verdict:** {record['verdict']}." in text
    table = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")]
    assert [row[0] for row in table] == ["stack", "---", "base", "all", "fewer-steps", "fewer-steps-multistep"]
    base = record["rows"][0]
    assert table[2][table[0].index("time")] == f"{base['seconds']:.2f} s"


def lora_file(path: Path, width: int = 128) -> Path:
    """A LoRA on one linear of the tiny model."""
    torch.manual_seed(3)
    key = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{key}.lora_A.weight": torch.randn(2, width), f"{key}.lora_B.weight": torch.randn(128, 2)}, path)
    return path


def test_a_lora_is_in_the_base_and_in_every_stack(run: Run, folder: Path, line: list[Any]) -> None:
    one = ["--prompt", "a red ring", "--prompts", "1"]
    assert run(*line, *one)[0] == 0
    plain = (folder / "out" / "grid.png").read_bytes()
    code, _, err = run(*line, *one, "--fresh", "--lora", lora_file(folder / "lora.safetensors"))
    assert code == 0, err
    record = record_in(folder)
    assert (folder / "out" / "grid.png").read_bytes() != plain
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["all"]["full_steps"] == 3 and 10 < rows["all"]["psnr_db"] < 99
    (folder / "int8.toml").write_text('steps = 14\n[quantize]\nscheme = "int8"\nmin_features = 16\n')
    line = [folder / "int8.toml" if str(part).endswith("mine.toml") else part for part in line]
    code, _, err = run(*line, *one, "--fresh", "--lora", lora_file(folder / "lora.safetensors"))
    assert code == 0, err
    assert 20 < {row["name"]: row for row in record_in(folder)["rows"]}["all"]["psnr_db"] < 99
    code, _, err = run(*line, *one, "--fresh", "--lora", lora_file(folder / "odd.safetensors", width=64))
    assert code == 2 and "error: cannot load the LoRA" in err


BAD = {
    "no json": (["--call", "{guidance: 3}"], "--call: expected JSON such as {"),
    "no object": (["--call", "[1]"], "--call: expected arguments by name such as {"),
    "unknown argument": (["--call", '{"heigth": 3}'], "argument of ShapesFluxPipeline 'heigth': did you mean 'height'"),
    "own argument": (["--call", '{"generator": 3}'], "call= has generator, which is set here: give seed="),
    "guidance": (["--guidance", "nan"], "--guidance must be a number of at most 1000, got nan"),
    "no file": (["--prompts-file", "{}/gone.txt"], "cannot read prompts from"),
    "empty file": (["--prompts-file", "{}/empty.txt"], "--prompts-file: expected a file with a prompt on each line"),
    "too many": (["--prompt", "a red ring", "--prompts", "2"], "--prompts must be at most the 1 prompts that are"),
    "no lora": (["--lora", "{}/gone.safetensors"], "cannot load the LoRA"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_asked_is_one_line(
    run: Run, folder: Path, line: list[Any], arguments: list[str], expected: str
) -> None:
    (folder / "empty.txt").write_text("\n")
    code, out, err = run(*line, *(text.replace("{}/", f"{folder}/") for text in arguments))
    assert (code, out) == (2, "") and expected in err.splitlines()[-1], err


@pytest.mark.parametrize("peer", ["diffusers first-block 10", "diffusers TaylorSeer every 3", "cache-dit DBCache 10"])
def test_peers_leave_the_model_and_the_classes_as_they_were(
    pipe: Any, peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stack.comparison import peers as subject
    from stack.comparison.peers import peers

    monkeypatch.setattr(subject, "THRESHOLDS", (10,))  # random weights change too much for those of real models
    known = {one.name: one for one in peers()}
    if peer not in known:
        pytest.skip("cache-dit is an optional library")
    engine = PipelineEngine(pipe, {}, 8, peers=list(known.values()))
    base, row = Row("base", "base", "base", steps=8), Row(peer, "peer", "peer", steps=8)
    before, call = engine.generate(base, "a red ring", 1).picture, type(pipe).__call__
    engine.warm_up(row, "a red ring")
    first, second = engine.generate(row, "a red ring", 1), engine.generate(row, "a red ring", 1)
    assert torch.equal(first.picture, second.picture) and not torch.equal(first.picture, before)
    assert first.kinds == () and type(pipe).__call__ is call
    assert torch.equal(engine.generate(base, "a red ring", 1).picture, before)
