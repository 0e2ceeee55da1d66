"""What stands in for the modules of a block on a conservative step: attention reused, MLPs computed for some tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...models.wiring import CachedModule
from ..controller import CacheController
from ..tokenwise.selection import gather, scatter
from .calls import returned, several
from .chooser import Chooser, Place

Forward = Callable[..., Any]
Wrapper = Callable[[Forward], Forward]


class Modules:
    """Wrappers around the modules; only full and conservative steps get there.

    Attributes:
        conservative: whether this is a conservative step; on a full one every module runs, and its output is kept.
    """

    def __init__(self, controller: CacheController, chooser: Chooser):
        self.controller, self.chooser = controller, chooser
        self.conservative = False

    def wrappers(
        self, module: CachedModule, place: Place, modules: tuple[CachedModule, ...]
    ) -> list[tuple[str, Wrapper]]:
        """(path, wrapper) of what stands in for a module, and for those that serve it alone."""
        if module.role == "attention":
            return [(module.path, partial(self._reused, key=place.key))]
        out: list[tuple[str, Wrapper]] = []
        if module.values and self.chooser.observes:
            out.append((module.values, partial(self._observed, place=place)))
        if module.role == "mlp":
            return [*out, (module.path, partial(self._refreshed, place=place))]
        # One projection over attention and MLP side by side: row i of its output needs row i of both and no other. So a
        # conservative step hands it the chosen rows only, of the kept attention and of a fresh MLP, and writes what
        # comes out into its kept output. Exact, and good for every kind of linear: no weight is split in two.
        attentions = {m.path for m in modules if m.role == "attention"}
        for path in module.spares:
            out.append((path, partial(self._lent if path in attentions else self._narrowed, place=place)))
        return [*out, (module.path, partial(self._refreshed, place=place, narrowed=True))]

    @property
    def _kept(self) -> dict[str, torch.Tensor]:
        return self.controller.cells[0].kept

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

    def _refreshed(self, inner: Forward, place: Place, narrowed: bool = False) -> Forward:
        """MLP: the chosen tokens are computed, the others stay as they are kept. `narrowed`: it is given no others."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept = self._kept
            rows = self.chooser.rows(place, kept[place.key]) if self.conservative else None
            if rows is None:
                kept[place.key] = inner(x, *args, **kwargs).contiguous()
            if not self.conservative:
                self.chooser.refresh(place)
            if rows is not None and len(rows):
                some = inner(x if narrowed else gather(x, rows), *args, **kwargs)
                scatter(kept[place.key], rows, some)
            return kept[place.key]

        return forward

    def _narrowed(self, inner: Forward, place: Place) -> Forward:
        """What feeds a narrowed module: the chosen tokens are computed and no others come out."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            rows = self.chooser.rows(place, self._kept[place.key]) if self.conservative else None
            if rows is not None and not len(rows):
                return x[:, :0]  # of no tokens the width does not matter: nobody reads them
            return inner(x if rows is None else gather(x, rows), *args, **kwargs)

        return forward

    def _lent(self, inner: Forward, place: Place) -> Forward:
        """Attention that feeds a narrowed module: the chosen tokens of what is kept."""
        reused = self._reused(inner, f"{place.key}/attention")

        def forward(*args: Any, **kwargs: Any) -> Any:
            value = reused(*args, **kwargs)
            rows = self.chooser.rows(place, self._kept[place.key]) if self.conservative else None
            if rows is None:
                return value
            # Attention that answers stream by stream is joined again by its block, in this order.
            first, *others = several(value)
            some = gather(torch.cat([first, *others], 1) if others else first, rows)
            return returned((some, *(other[:, :0] for other in others)))

        return forward

    def _observed(self, inner: Forward, place: Place) -> Forward:
        """The linear whose output tells how large the tokens' values are."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            values = inner(*args, **kwargs)
            self.chooser.observe(place, values)
            return values

        return forward
