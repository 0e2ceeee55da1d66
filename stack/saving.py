"""A quantized stack in a folder: the rounded weights, the passes above them, the sampler.

The weights of a pipeline's first denoiser lie in the folder itself, those of another in one of its name inside.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .caching.cache import FILES, Cache
from .caching.fitted import Fitted
from .core.errors import StackError
from .core.files import check_folder, inside, read_text, read_toml, reason, write_text
from .core.validate import checked, shown
from .distill.adapter import Adapter
from .distill.distill import Distill
from .distill.find import carry
from .distill.stage import AdapterStage
from .models.denoiser import denoiser_of, other_denoisers
from .models.derive.wiring import wiring_of
from .quant.fits import FILE
from .quant.saved import Restored, put_on, read_denoiser, save_denoiser
from .recipe import Recipe, as_toml, load_recipe, recipe_toml
from .runtime.stack_like import StackLike

RECIPE, SCHEDULER, SCHEDULER_FILE = "recipe.toml", "scheduler", "scheduler_config.json"
WEIGHTS = "weights"  # note of a saved recipe: the digest of the weights it was written with
OTHERS = "weights_of_"  # the same of another denoiser than the first, before its name


def to_recipe(stack: StackLike, name: str = "stack", description: str = "", model: str = "") -> Recipe:
    """The passes asked for as a recipe: `recipe_toml` writes it, `Stack.from_recipe` makes an equal stack of it.

    Args:
        model: the model it is for; by default the hub id or the folder's name that the pipeline was loaded from, or the
            model's family.

    Raises:
        StackError: a pass holds something that a recipe cannot, such as maps that were fitted and not saved.
    """
    source = "" if stack.pipe is None else str(stack.pipe.name_or_path or "")
    source = os.path.basename(os.path.normpath(source)) if os.path.isdir(source) else source
    options = {p.stage: as_toml(p.options()) for p in stack.passes}
    return Recipe(name, description, model or source or stack.facts.family, stack.facts.steps, options)


def stack_words(stack: StackLike) -> str:
    """Model, steps, passes with their options, and whether they are on the model."""
    model = stack.pipe if stack.pipe is not None else stack.denoiser
    passes = []
    for p in stack.passes:
        options = p.options_with(dict.fromkeys(p.fitted, "fitted")) if isinstance(p, Cache) else p.options()
        passes.append(f"{p.stage}({', '.join(f'{name}={value!r}' for name, value in options.items())})")
    words = [f"{stack.facts.steps} steps", *passes, "applied" if stack.applied else "not applied"]
    return f"<Stack on {type(model).__name__}: {', '.join(words)}>"


def save_stack(stack: StackLike, folder: str | Path) -> int:
    """Write an applied stack; see `Stack.save`."""
    folder = _folder(folder)
    if not stack.applied:
        raise StackError("save() writes an applied stack: call apply() first")
    check_folder(folder, "save()")
    above, fitted = _above(stack), _fitted(stack)
    recipe = Recipe(folder.absolute().name, "", stack.facts.family, stack.plan.facts_after.asked, above)
    recipe_toml(recipe)  # what it cannot hold is refused before anything is written
    others = {} if stack.pipe is None else other_denoisers(stack.pipe)
    count = save_denoiser(stack.denoiser, folder)
    count += sum(save_denoiser(denoiser, folder / name) for name, denoiser in others.items())
    for options in above.values():
        if "adapter" in options:
            options["adapter"] = carry(options["adapter"], folder)
    for name, each in fitted.items():
        each.save(folder / f"{name}.safetensors")
    if stack.pipe is not None:
        _save_scheduler(stack.pipe.scheduler, folder / SCHEDULER)
    # Last: until it is written, loading the folder fails, as no saved stack or because the weights' digest differs.
    notes = {WEIGHTS: digest(folder / FILE)} | {f"{OTHERS}{name}": digest(folder / name / FILE) for name in others}
    text = recipe_toml(replace(recipe, stages=above, notes=notes))
    write_text(folder / RECIPE, text)
    return count


def _above(stack: StackLike) -> dict[str, dict[str, Any]]:
    """The options of what the weights do not hold: linears are rounded, and of a fused adapter its schedule is left."""
    added = [p for p in stack.plan.passes() if p.stage in stack.plan.added]
    adapters = [p for p in stack.plan.passes() if isinstance(p, AdapterStage)]  # fused, or repaired to a branch
    files = {name: f"{name}.safetensors" for name in _fitted(stack)}
    above = {
        p.stage: p.options_with(files) if isinstance(p, Cache) else p.options()
        for p in (*stack.passes, *added)
        if p.stage not in ("distill", "quantize")
    }
    above |= {p.stage: p.options() for p in adapters if p.stage == Adapter.stage}
    fused = {p.stage: {**p.options(), "fused": True} for p in adapters if p.stage == Distill.stage and p.card.steps}
    return {**fused, **above}


def _fitted(stack: StackLike) -> dict[str, Fitted]:
    return {name: value for p in stack.passes if isinstance(p, Cache) for name, value in p.fitted.items()}


def _folder(given: str | Path) -> Path:
    if not isinstance(given, (str, Path)) or not str(given):
        raise StackError(f"expected the name of a folder, got {shown(given)}")
    return Path(given)


def _save_scheduler(scheduler: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SCHEDULER_FILE, scheduler.to_json_string())


def digest(path: Path) -> str:
    """The first 32 digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def load_weights(folder: str | Path, model: Any) -> Recipe:
    """Give a model the saved weights; returns the recipe of the passes above them. See `Stack.load`.

    Everything is read and checked before the model is touched.
    """
    folder = _folder(folder)
    if not os.path.isfile(folder / RECIPE):
        raise StackError(f"expected a folder written by Stack.save(), but {shown(str(folder))} has no {RECIPE}")
    path = inside(folder, RECIPE, str(folder), links=False)
    recipe = load_recipe(str(path))
    if lacking := [name for name in ("model", "steps", "notes") if name not in read_toml(path, str(path))]:
        raise StackError(f"{path}: expected {lacking[0]}, got none: it is damaged, save() the stack again")
    _check_links(recipe, folder)
    for each in recipe.passes():
        if isinstance(each, AdapterStage):
            _ = each.card  # a damaged one is told before the model is touched
    bare = isinstance(model, nn.Module)
    denoisers = {"": model if bare else denoiser_of(model)} | ({} if bare else other_denoisers(model))
    _check_others(recipe, [name for name in denoisers if name], folder)
    weights = [_weights(denoiser, folder, name, recipe) for name, denoiser in denoisers.items()]
    scheduler = None if bare else _scheduler(type(model.scheduler), folder)
    put_on(weights)
    if scheduler is not None:
        model.scheduler = scheduler
    return recipe


def _check_others(recipe: Recipe, names: list[str], folder: Path) -> None:
    """Refuse a model that has not the denoisers that were saved.

    Raises:
        StackError: it has more, or fewer.
    """
    saved = [note.removeprefix(OTHERS) for note in recipe.notes if note.startswith(OTHERS)]
    if sorted(saved) != sorted(names):
        holds = f"weights of one denoiser and {' and '.join(saved)}" if saved else "weights of one denoiser"
        has = f"this model has {' and '.join(names) or 'no other'} beside its first"
        raise StackError(f"{folder} has {holds}, {has}: load the pipeline that it was saved from")


def _weights(denoiser: nn.Module, folder: Path, name: str, recipe: Recipe) -> Restored:
    """The weights of one denoiser, checked; `name` is "" for the first one."""
    wiring_of(denoiser)
    place = inside(folder, name, str(folder), links=False) if name else folder
    weights = read_denoiser(denoiser, place)
    if recipe.notes.get(f"{OTHERS}{name}" if name else WEIGHTS, "") not in ("", digest(place / FILE)):
        raise StackError(f"{place / FILE} is not the file that {RECIPE} was written with: save() the stack again")
    return weights


def _check_links(recipe: Recipe, folder: Path) -> None:
    """Files that the recipe names lie in the folder itself, even where a name in it is a link."""
    for stage, options in recipe.stages.items():
        for name in ("adapter", *FILES):
            if isinstance(options.get(name), str):
                inside(folder, options[name], f"{folder}: {stage}.{name}", links=False)


def _scheduler(kind: Any, folder: Path) -> Any:
    """The saved scheduler; None where the folder has none."""
    source = inside(folder, f"{SCHEDULER}/{SCHEDULER_FILE}", str(folder), links=False)
    if not os.path.isfile(source):
        return None
    try:
        config = checked(dict[str, Any], json.loads(read_text(source, str(source))), str(source))
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            hint = type(parameter.default) if type(parameter.default) in (bool, int, float, str) else None
            if name in config and hint is not None:
                checked(hint, config[name], f"{source}: {name}")
        return kind.from_config(config)
    except StackError:
        raise
    except Exception as error:  # every scheduler refuses its settings in its own way
        raise StackError(f"{source} is no configuration of {kind.__name__} ({reason(error)})") from None
