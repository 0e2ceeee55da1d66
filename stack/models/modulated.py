"""What the attention of a block is given: its tokens behind norm and modulation, which TeaCache looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from .reached import given_to


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
        # The class's own forward: wrappers around the block belong to a whole call.
        reached = given_to(block.get_submodule(self.path), lambda: type(block).forward(block, **given))
        if reached is None:
            raise StackError(f"{self.path} of a {type(block).__name__} was not called: expected its attention")
        tokens: torch.Tensor = reached[self.argument]
        return tokens
