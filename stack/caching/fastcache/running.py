"""Which tokens of a sample go through the blocks, and how they come back to their places."""

from __future__ import annotations

import torch

from .merging import Merge


class Running:
    """All tokens, until `only` leaves some of them and `merge` makes those fewer."""

    def __init__(self) -> None:
        self.tokens: torch.Tensor | None = None
        self.groups: Merge | None = None

    @property
    def whole(self) -> bool:
        """Whether every token runs, as itself."""
        return self.tokens is None and self.groups is None

    @property
    def none(self) -> bool:
        """Whether no token runs."""
        return self.tokens is not None and not len(self.tokens)

    @property
    def places(self) -> torch.Tensor | None:
        """(n,) positions of what goes through the blocks, in the whole sequence; None where it is the sequence."""
        if self.groups is None:
            return self.tokens
        return self.groups.centres if self.tokens is None else self.tokens[self.groups.centres]

    def only(self, tokens: torch.Tensor, of: int) -> None:
        """Leave these (ascending) of so many tokens."""
        self.tokens = None if len(tokens) == of else tokens

    def merge(self, groups: Merge) -> None:
        """Merge what is left."""
        self.groups = None if bool(groups.alone.all()) else groups

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens (1, N, D) to those that go through the blocks (1, n, D)."""
        x = pick(x, self.tokens)
        return x if self.groups is None else self.groups.merge(x)

    def leave(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What came out (1, n, D), and all tokens (1, N, D) as they went in, to one row per running token."""
        if self.groups is None:
            return out
        went = pick(x, self.tokens)
        return self.groups.unmerge(out, self.groups.merge(went), went)


def pick(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Tokens (1, N, D) at some places; None is all."""
    return x if places is None else x.index_select(1, places)


def put(whole: torch.Tensor | None, places: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """A copy of the whole (1, N, D) with new tokens at these places; None is all."""
    return part if whole is None or places is None else whole.index_copy(1, places, part)
