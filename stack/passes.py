"""The passes by stage, and passes from a table of arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from .attention.dense_attn import DenseAttention
from .attention.sage_attn import SageAttention
from .attention.sparse_attn import SparseAttention
from .caching.cache import FILES, Cache
from .caching.policy import known_options
from .compile import Compile
from .core.errors import StackError, choose, nearest
from .core.files import inside
from .core.passes import Pass
from .distill.adapter import Adapter
from .distill.distill import Distill
from .distill.find import is_shipped
from .quant.quantize import Quantize
from .solver.solver import Solver

ATTENTION = (SageAttention, SparseAttention, DenseAttention)
KINDS: tuple[type[Any], ...] = (Distill, Quantize, Adapter, Solver, *ATTENTION, Compile, Cache)
PASSES: dict[str, type[Any]] = {p.stage: p for p in KINDS}


def make_pass(stage: str, options: dict[str, Any], where: str, folder: Path | None = None) -> Pass:
    """A pass from its stage's name and its arguments; maps and adapters are looked for in `folder` first.

    Raises:
        StackError: an unknown stage or argument, or a value the pass refuses; the message names the recipe.
    """
    if stage not in PASSES:
        raise choose(f"stage in recipe {where}", stage, list(PASSES))
    known = options_of(stage)
    try:
        for name in options:
            if name not in known:
                raise nearest(f"option of [{stage}] in recipe {where}", name, known)
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        if folder is not None:
            plain |= _located(stage, plain, folder)
        return made(PASSES[stage], **plain)
    except StackError as error:
        message = str(error)
        if f"recipe {where}" in message:
            raise
        raise StackError(f"recipe {where}: {message if message.startswith(stage) else f'{stage}: {message}'}") from None


def made(kind: type[Any], **options: Any) -> Any:
    """A pass from its class and its arguments by name.

    Raises:
        StackError: an argument that the pass has not, or needs; or a value that it refuses.
    """
    stage = kind.stage
    parameters = inspect.signature(kind).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in parameters and not open_ended:
            raise nearest(f"option of {stage}", name, parameters)
    for name, p in parameters.items():
        if name not in options and p.default is p.empty and p.kind is not p.VAR_KEYWORD:
            raise StackError(f"{stage}: expected {name}, got none")
    return kind(**options)


def _located(stage: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Where the files are that options name: in the recipe's folder; an adapter may also be one that ships."""
    found: dict[str, Any] = {
        name: inside(folder, options[name], f"{stage}.{name}") for name in FILES if isinstance(options.get(name), str)
    }
    adapter = options.get("adapter")
    if isinstance(adapter, str) and adapter and not is_shipped(adapter):
        found["adapter"] = str(inside(folder, adapter, f"{stage}.adapter"))
    return found


def options_of(stage: str) -> list[str]:
    """Names of a pass's arguments."""
    if stage == Cache.stage:
        return ["method", "max_error", *known_options()]
    return list(inspect.signature(PASSES[stage]).parameters)
