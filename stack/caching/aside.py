"""A call that leaves blocks out, as skip-layer guidance does, goes past a site that has to see every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.installer import Installer
from ..runtime.call import DenoiserCall, Interceptor, Proceed
from ..runtime.conditions import ConditionsReader
from ..runtime.report import Journal

SKIPS = frozenset(
    {"skip_layers", "spatio_temporal_guidance_blocks"}
)  # arguments of denoisers that name blocks to leave out
PAST = "calls that leave blocks out ({name}) run in full: this cache has to see every block"


class StepsAside(Installer):
    """Installs wrappers that such a call goes past; they are recorded where another installer records its own.

    Args:
        install: that other one.
        conditions: knows the arguments of the current call.
    """

    def __init__(self, install: Installer, conditions: ConditionsReader, journal: Journal):
        self._records, self._conditions, self._journal = install._records, conditions, journal

    @property
    def aside(self) -> bool:
        """Whether the current call leaves blocks out."""
        given = self._conditions.given
        return any(given.get(name) for name in SKIPS)

    def wrap_call(
        self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]], traced: bool = True
    ) -> None:
        """See `Installer.wrap_call`."""

        def passing(inner: Callable[..., Any]) -> Callable[..., Any]:
            wrapped = wrapper(inner)

            def forward(*args: Any, **kwargs: Any) -> Any:
                return inner(*args, **kwargs) if self.aside else wrapped(*args, **kwargs)

            return forward

        super().wrap_call(owner, name, passing, traced)

    def passed(self, interceptor: Interceptor) -> Interceptor:
        """The interceptor, which such a call goes past."""
        return _Passed(interceptor, self)

    def warn(self) -> None:
        """Say that the current call goes past."""
        name = next(name for name in SKIPS if self._conditions.given.get(name))
        self._journal.warn(PAST.format(name=name))


class _Passed:
    def __init__(self, interceptor: Interceptor, site: StepsAside):
        self._interceptor, self._site = interceptor, site

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        if not self._site.aside:
            return self._interceptor.intercept(call, proceed)
        self._site.warn()
        return proceed(call)
