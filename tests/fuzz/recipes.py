"""Mutants of recipes and cards: each is taken, or refused with one line that names the file.

    python -m tests.fuzz.recipes --count 10000 --seed 0

What is taken is planned for a small model as well, and written and read again; nothing is applied.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import diffusers

from stack.core.passes import ORDER
from stack.distill.card import Card
from stack.distill.find import find_card, shipped_folder
from stack.distill.listed import scheduler_of
from stack.distill.listing import markdown
from stack.recipe import load_recipe, recipe_toml
from stack.stack import Stack
from tests.conftest import tiny_pipe

from .mutate import mutant
from .tally import Tally, main

ROOT = Path(__file__).parents[2]
# Beside those that ship: one for every part of a cache, and every option that is a table or a list.
OWN = (
    '[quantize]\nscheme = "nf4"\nlayers = {a = "keep"}\nskip = ["*.to_k"]\nends = "keep"\nshare = 0.2\n[compile]\n'
    'mode = "off"\n',
    "[sage_attn]\neven_if_slower = false\n[dense_attn]\nbackend = 'torch'\n"
    '[sparse_attn]\nkeep = 0.5\nblock = 128\ndense_first = 2\n[cache]\nmethod = "svd"\ninterval = 4\nwarmup = 2\n'
    'order = 1\ngains = [1.0, 0.0]\nbasis = "newton"\nlevel = 0.1\ncoordinate = "time"\ncorrected = true\n',
    '[cache]\nmethod = "fastcache"\nsite = "fastcache"\nthreshold = 0.1\nparts = ["gate"]\n',
    '[cache]\nmethod = "toca"\n',
    '[cache]\nsite = "residual"\ngate = "prefix"\nthreshold = 0.1\nfront = 1\nlongest = 2\n',
    '[cache]\nmax_error = 0.02\nsplit = "band"\ncutoff = 0.2\nnoise = [[1.0, 0.1], [0.5, 0.2]]\n',
    '[cache]\ngate = "magnitude"\nratios = [1.0, 0.9]\nretention = 0.2\nmax_bytes = 1000\nstate_dtype = "float16"\n',
    '[distill]\nadapter = "shapes-flux-4"\nscale = 0.9\nsteps = 4\nmerge = false\n',
    '[adapter]\nadapter = "shapes-flux-4"\nsigmas = [1.0, 0.5]\nsteps = 2\nsecond = false\n',
)


def fuzz(count: int, seed: int) -> Tally:
    """So many mutants, half of recipes and half of cards."""
    rng, tally, pipe = random.Random(seed), Tally(), tiny_pipe()
    recipes = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.toml"))]
    # Options alone are few lines: with a head, every mutant of them has a name and steps as well.
    recipes += [f'name = "own"\nsteps = 14\n{text}' for text in OWN]
    cards = [path.read_text() for path in sorted(shipped_folder().glob("*.toml"))]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            data = mutant(rng.choice(cards if number % 2 else recipes), rng)
            path = Path(folder) / f"m{number}.toml"
            path.write_bytes(data)
            case = f"case {number}: {data[:3000]!r}"
            (_card if number % 2 else _recipe)(tally, case, path, pipe)
            path.unlink()
    return tally


def _recipe(tally: Tally, case: str, path: Path, pipe: object) -> None:
    if not tally.take(case, lambda: load_recipe(str(path)), path.name):
        return
    recipe = load_recipe(str(path))
    taken = Tally()
    taken.take(f"{case}\nplanned", lambda: Stack.from_recipe(recipe, pipe).explain())
    again = path.with_name("again.toml")
    if taken.take(f"{case}\nwritten", lambda: again.write_text(recipe_toml(recipe), "utf-8")):
        back = load_recipe(str(again))
        same = [
            getattr(back, name) == getattr(recipe, name) for name in ("name", "description", "steps", "stages", "notes")
        ]
        if not all(same) or list(back.stages) != [stage for stage in ORDER if stage in recipe.stages]:
            tally.changed.append(f"{case}\ncame back as {back}")
    tally.tracebacks += taken.tracebacks


def _card(tally: Tally, case: str, path: Path, pipe: object) -> None:
    if not tally.take(case, lambda: find_card(str(path)), path.stem):
        return
    card, taken = find_card(str(path)), Tally()
    taken.take(f"{case}\nlisted", lambda: markdown([card]))
    taken.take(f"{case}\nscheduler", lambda: _scheduler(card))
    tally.tracebacks += taken.tracebacks


def _scheduler(card: Card) -> None:
    made = scheduler_of(card, diffusers.FlowMatchEulerDiscreteScheduler(), card.steps)
    if made is not None and card.steps and card.sigmas():
        made.set_timesteps(card.steps)


if __name__ == "__main__":
    sys.exit(main(fuzz, 10_000))
