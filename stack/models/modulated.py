"""What the attention of a block is given: its tokens behind norm and modulation, which TeaCache looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from ..core.arguments import Arguments
from ..core.errors import StackError


class _Reached(Exception):
    def __init__(self, given: Mapping[str, Any]):
        super().__init__()
        self.given = given


@dataclass(frozen=True)
class UpToAttention:
    """Runs a block up to its attention, and no further.

    Attributes:
        path: of the attention, inside the block.
        argument: of the attention: the tokens (B, N, D).
    """

    path: str
    argument: str

    def __call__(self, block: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
        """The tokens that the attention is given where the block is given these arguments.

        Raises:
            StackError: the block does not call it.
        """
        attention = block.get_submodule(self.path)

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
            raise _Reached(Arguments(module.forward, module).named(args, kwargs))

        handle = attention.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            type(block).forward(block, **given)  # the class's own: wrappers around the block belong to a whole call
        except _Reached as reached:
            tokens: torch.Tensor = reached.given[self.argument]
            return tokens
        finally:
            handle.remove()
        raise StackError(f"{self.path} of a {type(block).__name__} was not called: expected its attention")
