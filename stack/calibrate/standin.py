"""What stands in a cache's place for a measuring run: a pass that plans nothing and reports nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.facts import Facts
from ..core.passes import Finding


class StandIn:
    """A pass of the cache's stage, but for `apply`."""

    stage: ClassVar[str] = "cache"

    def options(self) -> dict[str, Any]:
        """A measuring run is no part of a recipe."""
        return {}

    def describe(self, facts: Facts) -> list[str]:
        """A measuring run is never planned ahead."""
        return ["measuring run"]

    def check(self, facts: Facts) -> list[Finding]:
        """Nothing speaks against it."""
        return []

    def facts_after(self, facts: Facts) -> Facts:
        """As before: it computes what the stack without a cache computes."""
        return facts
