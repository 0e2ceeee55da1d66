"""Frechet distances of caches' samples: to the 50-step base's, and to drawn pictures or clips.

python benchmarks/cache_fid.py --model shapes-flux --samples 1000 --out DIR     DIR/ROW.pt per row, and the JSON
python benchmarks/cache_fid.py --model shapes-dit --rows base --rows 'svd*'

Options of calibrated rows come from caches-MODEL.json, so run caches.py first. Features are appended to a file per row
after each batch: Ctrl-C loses a batch at most, and the same command goes on. A sample's prompt and seed follow from its
number alone, so rows draw the same ones and are compared with the base's of the same number; with --reference also
with as many samples of the base of other prompts and seeds. For 1,000 samples of shapes-flux one AVX-512 core needs
about an hour for the base with --by-head (half as long again without), and 12 minutes for a row of 9 full steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cachebench.assemble import matcher
from cachebench.attention import HeadByHead
from cachebench.bench import Bench, pictures
from cachebench.prepare import calibrated, fitted_maps, gate_options, tuples
from cachebench.quality import frames_of
from cachebench.record import Record
from cachebench.rows import Row, at_count, fewer, preset
from cachebench.samples import Samples, distances, merged
from common import numbers, show
from rich.console import Console
from rich.progress import Progress

from stack.caching.methods import PRESETS
from stack.comparison.record import save_json
from stack.core.errors import StackError
from stack.reference.clips import draw_clips
from stack.reference.load import REFERENCES, load_classifier
from stack.reference.scenes import draw

OTHER_SEEDS = 1_000_000  # of the base's reference samples
CALIBRATED = ("svd", "predictor-corrector")
RIVALS = ("duca-published", "taylorseer-published", "first-block", "teacache", "fora-published")


def rows_of(bench: Bench, record: Record, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The base, the three seed methods, four rivals and the controls, all at the usual count."""
    full = bench.usual
    if wanted("base"):
        yield fewer(bench, bench.steps, "base")
    for method in CALIBRATED:
        if wanted(f"{method} calibrated, {full}"):
            yield preset(
                bench, f"{method} calibrated, {full}", method, "ours", **calibrated(bench, record, full, method)
            )
    if wanted("fastcache"):
        maps = {"maps": str(fitted_maps(bench))}
        yield preset(bench, "fastcache", "fastcache-published-gate", approximation="delta", **maps)
    for name in filter(wanted, RIVALS):
        yield preset(bench, name, name, **_options(bench, record, name, full))
    yield from (fewer(bench, full, group) for group in ("euler", "second order") if wanted(f"{full} steps, {group}"))
    known = record.prepared.get(f"control, {full}")
    if known and wanted(f"{full} steps, searched"):
        yield fewer(bench, full, "searched", tuples(known["times"]))


def _options(bench: Bench, record: Record, name: str, full: int) -> dict[str, Any]:
    """Of a rival at this many full steps; a gate's own threshold."""
    return gate_options(bench, record, name) if PRESETS[name].gate else at_count(bench, full)


def sample(bench: Bench, row: Row, kept: Samples, samples: int, batch: int, first_seed: int) -> None:
    """Generate what is missing of a row's samples, and keep their features batch by batch."""
    known, reader = REFERENCES[bench.model], load_classifier()
    if kept.count >= samples:
        return
    with Progress() as bar, row.using() as live:
        task = bar.add_task(row.name, total=samples, completed=kept.count)
        while kept.count < samples:
            numbers = range(kept.count, min(samples, kept.count + batch))
            texts = [known.prompt(known.sample(random.Random(first_seed + n))) for n in numbers]
            made = pictures(live.run, texts, bench.steps, first_seed + numbers[0])
            kept.append(features_of(reader, made))
            bar.update(task, completed=kept.count)


def features_of(reader: Any, made: torch.Tensor) -> torch.Tensor:
    """The reader's features of pictures (B, D), or of a clip's frames (B, F, D)."""
    features = reader.features(frames_of(made) * 2 - 1)
    return features.unflatten(0, made.shape[:2]) if made.ndim == 5 else features


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    samples: Annotated[int, typer.Option(min=2)] = 1000,
    rows: Annotated[list[str] | None, typer.Option(help="names with wildcards; may be given several times")] = None,
    steps: Annotated[int, typer.Option(min=6)] = 50,
    counts: str = "12,9,6,5",
    batch: Annotated[int, typer.Option(min=1)] = 8,
    prompts: Annotated[int, typer.Option(help="as caches.py was run")] = 16,
    trials: int = 16,
    reference: Annotated[bool, typer.Option(help="sample the base with other seeds too")] = False,
    by_head: Annotated[bool, typer.Option(help="attention head by head, faster on some CPUs")] = False,
    out: Annotated[Path, typer.Option(help="where features are kept, outside the repository")] = Path("fid-features"),
    docs: Path = Path("docs/benchmarks"),
    weights: Path | None = None,
) -> None:
    """Sample, measure, print the table, write docs/benchmarks/fid-MODEL.json."""
    try:
        at = numbers(counts)
        bench, wanted = Bench(model, steps, at, prompts, prompts, trials, weights), matcher(rows or ())
        record = Record.open(docs / f"caches-{model}.json", bench.protocol())
        protocol = {**bench.protocol(), "batch": batch, **({"attention": "head by head"} if by_head else {})}
        others = Samples.open(out / model / "reference.pt", {**protocol, "row": "base, other seeds"})
        chosen = list(rows_of(bench, record, wanted))
        kept = {row.name: Samples.open(out / model / f"{row.name}.pt", {**protocol, **row.settings}) for row in chosen}
        try:
            with HeadByHead() if by_head else nullcontext():
                if reference:
                    sample(bench, fewer(bench, steps, "base"), others, samples, batch, OTHER_SEEDS)
                _sample_all(bench, chosen, kept, samples, batch)
        except KeyboardInterrupt:
            Console().print("stopped: features so far are kept, the same command goes on")
        base = fewer(bench, steps, "base")
        same = Samples.open(out / model / "base.pt", {**protocol, **base.settings})
        lines = merged(docs / f"fid-{model}.json", protocol, _lines(bench, kept, same, others))
        if lines:
            show(f"{model}, FID on the reader's features", lines)
            save_json({"protocol": protocol, "rows": lines}, docs / f"fid-{model}.json")
    except StackError as error:
        raise SystemExit(f"error: {error}") from None


def _sample_all(bench: Bench, rows: list[Row], kept: dict[str, Samples], samples: int, batch: int) -> None:
    for row in rows:
        try:
            sample(bench, row, kept[row.name], samples, batch, 0)
        except StackError as error:  # its plan refuses this model
            Console().print(f"{row.name}: not supported: {error}", highlight=False)


def _lines(bench: Bench, kept: dict[str, Samples], base: Samples, others: Samples) -> list[dict[str, Any]]:
    """A line per row that has samples."""
    ready = {name: own.features for name, own in kept.items() if own.features is not None and own.count > 1}
    known = {"same": base.features, "others": others.features}
    return [distances(name, own, {**known, "drawn": _drawn(bench, len(own))}) for name, own in ready.items()]


def _drawn(bench: Bench, count: int) -> torch.Tensor:
    """Features of as many drawn pictures of the scenes that were asked for."""
    reader, known = load_classifier(), REFERENCES[bench.model]
    found = []
    for first in range(0, count, 64):
        scenes = [known.sample(random.Random(n)) for n in range(first, min(count, first + 64))]
        config, rng = bench.pipe.config, random.Random(OTHER_SEEDS + first)
        made = (draw_clips if "frames" in config else draw)(scenes, config["size"], rng)
        found.append(features_of(reader, (made + 1) / 2))
    return torch.cat(found)


if __name__ == "__main__":
    typer.run(main)
