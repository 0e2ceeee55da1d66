"""The page `docs/models.md`: which class of diffusers gets what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stack.distill.find import cards_in, shipped_folder
from stack.distill.fits import unusable
from stack.models.families.refused import REFUSED as NOT_SMALL

from .classes import CLASSES, REFUSED
from .columns import COLUMNS
from .pipelines.test_guidance import CALLS
from .saved.build import SAVED

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
YES, NO = "yes", "-"
TIERS = {
    "whole": "around the whole denoiser",
    "blocks": "on its blocks",
    "attention": "in its attention",
}
HEAD = """# Models

ditstack works on any diffusers denoiser. It traces one call of a small instance of the class, reads the structure off
that call, and tests it before using it. `ditstack models CLASS` prints what was found. Of three families [small
trained models ship](reference-models.md).

A class of your own works without data if its arguments have names that diffusers uses. Otherwise describe them before
you build a stack:

```python
from stack.models.examples.call import noise
from stack.models.families import FamilyData, register_family

register_family(FamilyData(("MyTransformer2DModel",), arguments={"verse": noise("B T verse_dim")}))
```

Written by `python -m tests.families`, which tests every cell on a small instance of the class with random weights. Each
test also takes the pass off and checks that the model's outputs are as before, bit for bit (undo exact).

| column | what is shown |
|---|---|
"""
TABLE = """
{counts}

What does not work on a class is in `Stack(model).explain()`, with the reason, and is refused before anything changes.

"""
WHOLE = """
## Whole pipelines

Small pipelines of these classes run end to end (`pytest tests/families/pipelines`): with every step full, and after
undo, they equal the plain pipeline bit for bit; with `cache("svd")` each guidance branch has a full step first and
cached steps of its own. All outputs of a denoiser (LTX-2: video and sound) are cached. A pipeline with two denoisers
(Wan 2.2, Ideogram 4) is one row in `compare` and gets one schedule from `calibrate`; the step on which the second takes
over is always full. `noise_floor`, `fit_rounding`, `fit_bases` and `fit_maps` are refused there.

| pipeline | calls of a step | samples in a call |
|---|---|---|
"""
FOLDERS = """
`ditstack explain`, `run` and `compare` are tested on a saved pipeline folder, with text encoder, tokenizer and VAE, of
these (`pytest tests/families/saved`): {names}.
"""
REFUSALS = """
## Refused

| class | why |
|---|---|
"""


def page() -> str:
    """The whole page."""
    what = [f"| {name} | {' '.join((column.check.__doc__ or '').split())} |" for name, column in COLUMNS.items()]
    what.append("| adapters | how many of the shipped [cards](adapters.md) are made for the class and can be used |")
    refused = [f"| `{name}` | {why} |" for name, why in sorted((NOT_SMALL | REFUSED).items())]
    whole = [f"| {name} | {', '.join(branches)} | {samples} |" for name, (branches, samples) in CALLS.items()]
    return (
        HEAD + "\n".join(what) + "\n" + TABLE.format(counts=counts()) + table()
        + WHOLE + "\n".join(whole) + "\n" + folders() + REFUSALS + "\n".join(refused) + "\n"
    )  # fmt: skip


def folders() -> str:
    """The pipelines that are saved and loaded."""
    *names, last = SAVED
    return FOLDERS.format(names=f"{len(SAVED)} pipelines, {', '.join(names)} and {last}")


def counts() -> str:
    """How many classes have how much of each tier."""
    wired = len([name for name in CLASSES if name not in REFUSED])
    lines = [f"{wired} classes of diffusers run; of them"]
    for tier, words in TIERS.items():
        found = {name: len(column.classes()) for name, column in COLUMNS.items() if column.tier == tier}
        lines.append(f"- {words}: " + ", ".join(f"{name} {count}" for name, count in found.items()))
    return "\n".join(lines)


def table() -> str:
    """A row per class."""
    has = {column: frozenset(shown.classes()) for column, shown in COLUMNS.items()}
    cards = adapters()
    rows = [f"| class | {' | '.join(COLUMNS)} | adapters |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in CLASSES:
        if name not in REFUSED:
            cells = [YES if name in has[column] else NO for column in COLUMNS]
            rows.append(f"| `{name}` | {' | '.join(cells)} | {cards[name] or NO} |")
    return "\n".join(rows) + "\n"


def adapters() -> Counter[str]:
    """Usable cards by class."""
    return Counter(name for card in cards_in(shipped_folder()) if not unusable(card) for name in card.classes)
