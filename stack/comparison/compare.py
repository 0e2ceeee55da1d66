"""`ditstack compare` as a function: stacks and a pipeline in, figures and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import StackError
from ..core.files import claimed
from ..core.progress import ProgressLine
from ..measure.quality import Judge
from ..models.denoiser import denoiser_of
from ..reference.captions import known
from ..reference.load import REFERENCES, load_reader
from ..reference.prompts import Prompts
from ..runtime.call_arguments import Call, call_of
from ..runtime.pipeline_calls import pipeline_for
from ..stack import Stack
from .engine import Engine, PipelineEngine
from .files import files_in, save_outcome
from .kept import KeptEngine, KeptPictures, finished, folder_of
from .loop import Measurement, Progress, measure
from .outcome import Comparison
from .peers import peers as peers_here
from .question import Candidate, Question, asked
from .record import Accuracy, build_record
from .rows import BASE, BASE_EAGER, Measured, Row, plan_rows, share
from .verdict import verdict


def compare(
    model: Any,
    recipes: Candidate | Sequence[Candidate] | None = None,
    *,
    prompts: Prompts = 3,
    steps: int | None = None,
    seed: int = 0,
    size: str | None = None,
    frames: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    call: Call | None = None,
    peers: bool = False,
    pairs: bool = False,
    compile_base: bool = True,
    out: str | Path | None = None,
    fresh: bool = False,
    numbered: bool = False,
    name: str | None = None,
    command: str = "",
    progress: bool = True,
) -> Comparison:
    """Measure stacks on a pipeline: each pass alone, all together, all but one, and the control of every row.

    The control is the same model with as many plain steps as fit in the row's time. The pipeline is left as it was.
    After Ctrl-C the rows measured so far are returned.

    Args:
        model: a pipeline, or a `Stack` on one, which is taken off meanwhile.
        recipes: shipped names, paths of .toml files, `Recipe` or `Stack` objects; one is measured pass by pass. By
            default the stack given as `model`, or the shipped recipe "fast".
        prompts: prompts of your own, the path of a file of them, or how many captions of a reference model; see
            `stack.reference.prompts.drawn_prompts`. Each has its own seed.
        steps: of the model without a stack; by default the recipes', without those of a distilled adapter.
        seed: of the first prompt; prompt i has seed + i. The captions depend on it too.
        size, frames, guidance, negative_prompt, call: see `stack.runtime.call_arguments.call_of`.
        peers: also measure caches of other libraries, see `stack.comparison.peers`.
        pairs: also measure each pair of passes, of four or more; of fewer they are always measured.
        compile_base: try the model without a stack compiled, and compare with the faster.
        out: folder for the report and for finished pictures. The same comparison continues where it was stopped;
            if it was finished, its saved results are returned. `fresh` starts again. Where it holds another one, with
            `numbered` the first free of out-2, out-3, ... is taken.
        name, command: the model's name and the command line, for the record.
        progress: show one line on stderr.

    Raises:
        StackError: a recipe cannot work on this model, too few `prompts` or `steps`, `out` holds another comparison.
    """
    stack = model if isinstance(model, Stack) else None
    pipe = pipeline_for("compare()", model if stack is None else stack.pipe)
    question = asked(
        pipe, recipes if recipes is not None else stack, prompts, steps, seed, name,
        call_of(pipe, size, frames, guidance, negative_prompt, call), peers_here() if peers else [], pairs,
        compile_base,
    )  # fmt: skip
    question, folder = replace(question, command=command), None if out is None else Path(out)
    with taken_off(stack), ProgressLine("compare", progress) as line:
        if folder is None:
            return _measured(pipe, question, None, line)
        return _in_folder(pipe, question, folder, numbered, fresh, line)


@contextmanager
def taken_off(stack: Any) -> Iterator[None]:
    """A stack that is off its model meanwhile, and on it again afterwards if it was; nothing for any other model."""
    if not isinstance(stack, Stack) or not stack.applied:
        yield
        return
    stack.undo()
    try:
        yield
    finally:
        stack.apply()


def _in_folder(pipe: Any, question: Question, out: Path, numbered: bool, fresh: bool, line: ProgressLine) -> Comparison:
    """A comparison whose pictures and report are kept in a folder."""
    key = question.key(denoiser_of(pipe))
    folder = folder_of(out, numbered, key, fresh)
    if not fresh and (record := finished(folder, key)):
        return Comparison(record, plans=record["plans"], files=files_in(folder))
    with claimed(folder, "--out"):
        kept = KeptPictures.at(folder, key, fresh)
        outcome = _measured(pipe, question, kept, line)
        outcome.record["key"] = key
        if outcome.pictures or not outcome.record["partial"]:  # else nothing was measured: what is there is left alone
            outcome.files = save_outcome(outcome, folder)
        if not outcome.record["partial"] or not outcome.pictures:
            kept.drop()
    return outcome


def _measured(pipe: Any, question: Question, kept: KeptPictures | None, line: ProgressLine) -> Comparison:
    header, texts = question.header, question.prompts
    rows = plan_rows(
        {name: [p.stage for p in passes] for name, passes in question.recipes.items()}, header.steps,
        [peer.name for peer in question.peers], question.pairs,
    )  # fmt: skip
    engine = PipelineEngine(pipe, question.recipes, header.steps, question.call, question.peers)
    rows = share(rows, engine.effective)
    plans = {name: engine.explain(name) for name in question.recipes}
    reader, notes = _reader(header.model, texts) if question.drawn else (lambda pictures: None, [])

    def tell(now: Progress) -> None:
        line.says("pictures", now.done, now.total, now.text, now.seconds_left)

    try:
        measurement = _run(engine, rows, question, kept, line, tell)
    except KeyboardInterrupt:
        measurement = Measurement({BASE: Measured(rows[0])}, len(texts), partial=True)
    measurement.warnings += engine.base.warnings + notes
    if not engine.multistep:
        measurement.warnings.append("no second-order control: it needs a DDIM or a plain flow-matching Euler scheduler")
    for m in measurement.rows.values():
        m.warnings += engine.repairs(m.row) if m.row.same_as and m.row.passes else []
    record = build_record(header, measurement, engine.work, reader, Judge())
    record |= {
        "base_mode": engine.base.mode,
        "base_step_seconds": engine.base.step_seconds,
        "plans": plans,
    }
    record |= {"verdict": verdict(record), "command": question.command or None}
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations and name != BASE_EAGER}
    return Comparison(record, pictures, plans)


def _run(
    engine: PipelineEngine, rows: Sequence[Row], question: Question, kept: KeptPictures | None, line: ProgressLine,
    tell: Callable[[Progress], None],
) -> Measurement:  # fmt: skip
    """Choose the base, or take the one that was chosen before, and measure every row."""
    header, texts = question.header, question.prompts
    line.says("base: compiling its blocks and timing them" if question.compile_base else "base: first steps")
    engine.prepare(texts[0], question.compile_base, kept.base if kept is not None else None)
    source: Engine = engine
    if kept is not None:
        kept.choose(engine.base)
        source = KeptEngine(engine, kept, range(header.seed, header.seed + len(texts)))
    return measure(source, [*rows, *_reference_row(engine, header.steps)], texts, header.seed, tell)


def _reference_row(engine: PipelineEngine, steps: int) -> list[Row]:
    """The eager base as a row of its own, where a compiled one rounds differently enough to be seen in the pictures.

    In half precision that is 40 dB, more than some passes; in fp32 it is beyond 90, and the time is better spent.
    """
    rounds_alike = engine.base.mode == "eager" or denoiser_of(engine.pipe).dtype == torch.float32
    return [] if rounds_alike else [Row(BASE_EAGER, "base", "base", steps=steps)]


def _reader(model: str, texts: Sequence[str]) -> tuple[Accuracy, list[str]]:
    """Reads pictures or videos back, where there is a reader for what the model draws."""
    if model not in REFERENCES:
        return lambda pictures: None, []
    try:
        reader = load_reader(model)
    except (StackError, OSError) as error:
        first = str(error).splitlines()[0]
        return lambda pictures: None, [f"accuracy not measured: {first}"]
    asked_of = known(model)
    scenes = [asked_of.parse(text) for text in texts]
    return lambda pictures: reader.accuracy(pictures * 2 - 1, scenes[: len(pictures)], asked_of.asked), []
