"""ditstack: composable acceleration for diffusion transformers.

from stack import Stack
fast = Stack(pipe).quantize("int8").sparse_attn(keep=0.5).cache("svd")
image = fast("a red ring left of a blue star").images[0]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import StackError as StackError
    from .runtime.report import Report as Report
    from .stack import Stack as Stack

__version__ = "0.1.0"

# Loaded when asked for: diffusers takes seconds, and --help, adapters and rules need none of it.
_HOMES = {"Stack": "stack", "StackError": "core.errors", "Report": "runtime.report"}
__all__ = ["Report", "Stack", "StackError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
