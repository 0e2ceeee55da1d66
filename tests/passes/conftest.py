"""What tests of compiled blocks share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced as for any other backend and run operation by operation: outputs are those of the eager stack
    bit for bit, in a tenth of the time."""
    torch._dynamo.reset()
    compile = torch.compile

    def traced(forward: Any, mode: str = "", backend: str = "aot_eager", **more: Any) -> Any:
        return compile(forward, backend=backend, **more)

    monkeypatch.setattr(torch, "compile", traced)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()
