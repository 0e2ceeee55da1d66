"""ditstack: composable acceleration for diffusion transformers.

from stack import Stack
fast = Stack(pipe).quantize("int8").sparse_attn(keep=0.5).cache("svd")
image = fast("a red ring left of a blue star").images[0]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.quiet import quiet as _quiet

if TYPE_CHECKING:
    from .caching.cache import Cache as Cache
    from .calibrated.calibrate import calibrate as calibrate
    from .comparison.compare import compare as compare
    from .comparison.outcome import Comparison as Comparison
    from .comparison.pictures import run as run
    from .compat.rules import list_rules as list_rules
    from .core.errors import StackError as StackError
    from .distill.find import list_adapters as list_adapters
    from .explained import Explanation as Explanation
    from .explained import explain as explain
    from .loading import load as load
    from .recipe import Recipe as Recipe
    from .recipe import list_recipes as list_recipes
    from .recipe import load_recipe as load_recipe
    from .recipe import recipe_toml as recipe_toml
    from .reference.names import list_models as list_models
    from .runtime.report import Report as Report
    from .stack import Stack as Stack
    from .tuning.tune import Tuned as Tuned
    from .tuning.tune import tune as tune

__version__ = "0.1.0"

# Loaded when asked for: diffusers takes seconds, and --help, adapters and rules need none of it.
_HOMES = {
    "Cache": "caching.cache",
    "Comparison": "comparison.outcome",
    "Explanation": "explained",
    "Recipe": "recipe",
    "Report": "runtime.report",
    "Stack": "stack",
    "StackError": "core.errors",
    "calibrate": "calibrated.calibrate",
    "compare": "comparison.compare",
    "explain": "explained",
    "list_adapters": "distill.find",
    "list_models": "reference.names",
    "list_recipes": "recipe",
    "list_rules": "compat.rules",
    "load": "loading",
    "load_recipe": "recipe",
    "Tuned": "tuning.tune",
    "recipe_toml": "recipe",
    "tune": "tuning.tune",
    "run": "comparison.pictures",
}
__all__ = [
    "Cache",
    "Comparison",
    "Explanation",
    "Recipe",
    "Report",
    "Stack",
    "StackError",
    "Tuned",
    "calibrate",
    "compare",
    "explain",
    "list_adapters",
    "list_models",
    "list_recipes",
    "list_rules",
    "load",
    "load_recipe",
    "recipe_toml",
    "run",
    "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _quiet():  # optional kernels that other libraries miss are no news
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
