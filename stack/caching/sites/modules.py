"""What stands in for the modules of a block on a conservative step: attention reused, MLPs computed for some tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ...models.layout import CachedModule
from ...models.ports import returned, several
from ..controller import CacheController
from ..tokenwise.selection import gather, scatter
from .inside import Forward, Wrapper
from .token_selector import Place, TokenSelector


class Modules:
    """Wrappers around the modules; only full and conservative steps get there.

    Attributes:
        conservative: whether this is a conservative step; on a full one every module runs, and its output is kept.
    """

    def __init__(self, controller: CacheController, selector: TokenSelector):
        self.controller, self.selector = controller, selector
        self.conservative = False

    def wrappers(
        self, module: CachedModule, place: Place, modules: tuple[CachedModule, ...]
    ) -> list[tuple[str, Wrapper]]:
        """(path, wrapper) of what stands in for a module, and for those that serve it alone."""
        if module.role == "attention":
            unread = [(norm, self._unread) for norm in module.norms]
            return [*unread, (module.path, partial(self._reused, key=place.key))]
        out: list[tuple[str, Wrapper]] = [(norm, partial(self._narrowed, place=place)) for norm in module.norms]
        if module.values and self.selector.observes:
            out.append((module.values, partial(self._observed, place=place)))
        # One projection over attention and MLP side by side: row i of its output needs row i of both and no other. So a
        # conservative step hands it the chosen rows only, of the kept attention and of a fresh MLP, and writes what
        # comes out into its kept output. Exact, and good for every kind of linear: no weight is split in two.
        attentions = {m.path for m in modules if m.role == "attention"}
        for path in module.spares:
            out.append((path, partial(self._lent, place=place) if path in attentions else _fed))
        return [*out, (module.path, partial(self._refreshed, place=place))]

    @property
    def _kept(self) -> dict[str, torch.Tensor]:
        return self.controller.slots[0].kept

    def _reused(self, inner: Forward, key: str) -> Forward:
        """Attention: as it was on the last full step."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            kept = self._kept
            if self.conservative:
                return returned(kept[name] for name in (f"{key}/{i}" for i in range(3)) if name in kept)
            result = inner(*args, **kwargs)
            for i, value in enumerate(several(result)):
                kept[f"{key}/{i}"] = value
            return result

        return forward

    def _refreshed(self, inner: Forward, place: Place) -> Forward:
        """MLP: given the chosen tokens, which are computed; the others stay as they are kept."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept = self._kept
            rows = self._rows(place)
            if rows is None:
                kept[place.key] = inner(x, *args, **kwargs).contiguous()
            elif len(rows):
                scatter(kept[place.key], rows, inner(x, *args, **kwargs))
            if not self.conservative:
                self.selector.refresh(place)
            return kept[place.key]

        return forward

    def _rows(self, place: Place) -> torch.Tensor | None:
        """The rows that are computed; None for all."""
        return self.selector.rows(place, self._kept[place.key]) if self.conservative else None

    def _narrowed(self, inner: Forward, place: Place) -> Forward:
        """A norm before an MLP: the chosen tokens and no others."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return inner(_chosen(x, self._rows(place)), *args, **kwargs)

        return forward

    def _unread(self, inner: Forward) -> Forward:
        """A norm before attention that is reused: no tokens, only the gates it returns beside them."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return inner(x[:, :0] if self.conservative else x, *args, **kwargs)

        return forward

    def _lent(self, inner: Forward, place: Place) -> Forward:
        """Attention that feeds an MLP's last projection: the chosen tokens of what is kept."""
        key, streams = f"{place.key}/attention", 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal streams
            kept = self._kept
            if not self.conservative:
                result = several(inner(*args, **kwargs))
                # Attention that answers stream by stream is joined again by its block, in this order.
                kept[key], streams = torch.cat(result, 1) if len(result) > 1 else result[0], len(result)
                return returned(result)
            some = _chosen(kept[key], self._rows(place))
            return returned((some, *[some[:, :0]] * (streams - 1)))

        return forward

    def _observed(self, inner: Forward, place: Place) -> Forward:
        """The linear whose output measures how large the tokens' values are."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            values = inner(*args, **kwargs)
            self.selector.observe(place, values)
            return values

        return forward


def _chosen(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The chosen tokens (B, K, D) of x (B, N, D); all of them for None."""
    if rows is None:
        return x
    return gather(x, rows) if len(rows) else x[:, :0]


def _fed(inner: Forward) -> Forward:
    """A linear that is given the chosen tokens: not every kind of it takes none."""
    return lambda x, *args, **kwargs: inner(x, *args, **kwargs) if x.shape[1] else x
