"""`ditstack compare` as a function: recipes and a pipeline in, figures and pictures out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import StackError
from ..core.validate import prompts_of
from ..models.denoiser import denoiser_of
from ..reference.load import REFERENCES, Reference, load_reader, name_of
from ..runtime.pipeline_calls import Call, PipelineCalls
from .engine import PipelineEngine
from .loop import Measurement, Progress, measure
from .record import Accuracy, Header, build_record
from .rows import BASE, BASE_EAGER, Measured, Row, plan_rows, share

if TYPE_CHECKING:
    from ..recipe import Recipe

DEFAULT = "shapes-flux"  # whose prompts any other model is given
KNOWN_ALL = 1000  # scenes drawn in a row without a new caption: there are no more


@dataclass
class Outcome:
    """A finished (or interrupted) comparison.

    Attributes:
        record: the contents of compare.json.
        pictures: (B, 3, H, W) or (B, F, 3, H, W) in [0, 1] by row, for the prompts that were done.
        plans: explain() of each recipe's whole stack.
    """

    record: dict[str, Any]
    pictures: dict[str, torch.Tensor]
    plans: dict[str, str] = field(default_factory=dict)


def captions(count: int, seed: int, model: str = DEFAULT) -> list[str]:
    """`count` different captions of a reference model: a fixed first one, then scenes drawn with the seed.

    A model that knows fewer, as one of classes does, has them repeated in the same order.
    """
    known = _known(model)
    chosen, rng, misses = [known.example], random.Random(seed), 0
    while len(chosen) < count and misses < KNOWN_ALL:
        caption = known.prompt(known.sample(rng))
        misses = misses + 1 if caption in chosen else 0
        if not misses:
            chosen.append(caption)
    return list(itertools.islice(itertools.cycle(chosen), count))


def compare(
    pipe: Any,
    recipes: Sequence[Recipe],
    model: str,
    prompts: int | Sequence[Any] = 3,
    steps: int = 50,
    seed: int = 0,
    compile_base: bool = True,
    tell: Callable[[Progress], None] = lambda progress: None,
    call: Call | None = None,
) -> Outcome:
    """Measure recipes on a pipeline: what each pass gives alone, together and left out, beside two controls.

    Args:
        model: the name for the record; accuracy is read back for reference models.
        compile_base: also try the base with compiled blocks, and take the faster.
        prompts: how many captions of the reference model, or prompts of your own; a text stands for a list of one.
        tell: called before every piece of work.
        call: further arguments of every call, see `stack.runtime.pipeline_calls.PipelineCalls`.

    Raises:
        StackError: a recipe cannot work on this model, or `prompts` or `steps` is below what can be measured.
    """
    count = prompts if isinstance(prompts, int) else len(prompts_of(prompts))
    if count < 1:
        raise StackError(f"prompts must be at least 1, got {count}")
    if steps < 2:
        raise StackError(f"steps must be at least 2, got {steps}: the controls need room below the base")
    by_name = {recipe.name: recipe for recipe in recipes}
    known = model if model in REFERENCES else name_of(pipe) or DEFAULT
    texts = captions(prompts, seed, known) if isinstance(prompts, int) else prompts_of(prompts)
    PipelineCalls(pipe, call).check(texts, 0)
    rows = plan_rows({name: tuple(recipe.stages) for name, recipe in by_name.items()}, steps)
    engine = PipelineEngine(pipe, by_name, steps, call)
    rows = share(rows, engine.effective)
    plans = {name: engine.explain(name) for name in by_name}
    reader, notes = _reader(model, texts) if isinstance(prompts, int) else (lambda pictures: None, [])
    own = sum(not row.same_as for row in rows)
    doing = "compiling its blocks and timing them" if compile_base else "first steps"
    tell(Progress(0, own * count, f"base: {doing}", None))
    try:
        engine.prepare(texts[0], compile_base)
    except KeyboardInterrupt:
        measurement = Measurement({BASE: Measured(rows[0])}, count, partial=True)
    else:
        measurement = measure(engine, [*rows, *_reference_row(engine, steps)], texts, seed, tell)
    measurement.warnings += engine.base.warnings + notes
    if not engine.multistep:
        measurement.warnings.append("no second-order control: it needs a DDIM or a plain flow-matching Euler scheduler")
    for m in measurement.rows.values():
        m.warnings += engine.repairs(m.row) if m.row.same_as and m.row.passes else []
    header = Header(
        model, engine.device.type, str(denoiser_of(pipe).dtype).removeprefix("torch."), tuple(map(str, texts)), steps,
        seed, tuple(by_name),
    )  # fmt: skip
    record = build_record(header, measurement, engine.work, reader)
    record["base_mode"] = engine.base.mode
    record["base_step_seconds"] = engine.base.step_seconds
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations and name != BASE_EAGER}
    return Outcome(record, pictures, plans)


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
    known = _known(model)
    scenes = [known.parse(text) for text in texts]
    return lambda pictures: reader.accuracy(pictures * 2 - 1, scenes[: len(pictures)], known.asked), []


def _known(model: str) -> Reference:
    return REFERENCES.get(model, REFERENCES[DEFAULT])
