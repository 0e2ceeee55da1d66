"""The passes by stage, and passes from a table of arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from .attention.sparse_attn import SparseAttention
from .caching.cache import FILES, Cache
from .caching.options import OLD_KEYS
from .caching.policy import known_options
from .compile import Compile
from .core.errors import StackError, choose, nearest
from .core.passes import Pass
from .core.removed import refuse_removed
from .distill.adapter import Adapter
from .distill.distill import Distill
from .quant.quantize import Quantize

PASSES: dict[str, type[Any]] = {p.stage: p for p in (Distill, Quantize, Adapter, SparseAttention, Compile, Cache)}


def make_pass(stage: str, options: dict[str, Any], where: str, folder: Path | None = None) -> Pass:
    """A pass from its stage's name and its arguments; maps and adapters are looked for in `folder` first.

    Raises:
        StackError: an unknown stage or argument, or a value the pass refuses; the message names the recipe.
    """
    if stage not in PASSES:
        raise choose(f"stage in recipe {where}", stage, list(PASSES))
    refuse_removed(stage, options)
    known = options_of(stage)
    for name in options:
        if name not in known:
            raise nearest(f"option of [{stage}] in recipe {where}", name, known)
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    for name in FILES if folder is not None else ():
        if isinstance(plain.get(name), str):
            plain[name] = folder / plain[name]
    adapter = plain.get("adapter")
    if folder is not None and isinstance(adapter, str) and (folder / adapter).is_file():
        plain["adapter"] = str(folder / adapter)
    try:
        return PASSES[stage](**plain)
    except TypeError as error:
        raise StackError(f"recipe {where}, [{stage}]: {error}") from None
    except StackError as error:
        raise StackError(f"recipe {where}, [{stage}]: {error}") from None


def options_of(stage: str) -> list[str]:
    """Names of a pass's arguments, old ones among them."""
    if stage == Cache.stage:
        return ["method", "max_error", *known_options(), *OLD_KEYS]
    return list(inspect.signature(PASSES[stage]).parameters)
