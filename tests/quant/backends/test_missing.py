"""A library that is not installed: "auto" goes on without it; asked for by name, its install line is in the error."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from stack.core.errors import StackError
from stack.core.facts import Machine
from stack.core.plan import make_plan
from stack.quant.backends import BACKENDS, libraries, pick
from stack.quant.quantize import Quantize
from stack.quant.schemes import SCHEMES
from tests.test_plan import FACTS

MODULES = {"torchao": "torchao.quantization", "bitsandbytes": "bitsandbytes", "quanto": "optimum.quanto"}
ONE_EACH = {"torchao": "int8", "bitsandbytes": "nf4", "quanto": "int8-weight"}
CUDA = Machine("cuda", "NVIDIA H200", capability=(9, 0))
Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Makes modules that cannot be imported; all others can."""

    def call(*modules: str) -> None:
        monkeypatch.setattr(libraries, "importable", lambda module: module not in modules)

    return call


@pytest.mark.parametrize("backend", MODULES)
def test_asked_for_by_name_it_is_named_with_its_install_line(backend: str, without: Without) -> None:
    scheme = SCHEMES[ONE_EACH[backend]]
    without()
    assert pick(scheme, backend, CUDA) == (BACKENDS[backend], "asked for")
    without(MODULES[backend])
    error = rf"quantize\(backend='{backend}'\) needs {MODULES[backend]}: pip install '(optimum-)?{backend}>=0"
    with pytest.raises(StackError, match=error):
        pick(scheme, backend, CUDA)
    with pytest.raises(StackError, match=error):
        make_plan(FACTS, [Quantize(scheme.name, backend=backend)])


@pytest.mark.parametrize(
    ("scheme", "missing", "backend"),
    [
        ("int8", (), "torchao"),
        ("int8", ("torchao.quantization",), "native"),
        ("int8-weight", ("torchao.quantization",), "native"),
        ("fp8-weight", ("torchao.quantization",), "native"),
        ("int4-weight", (), "torchao"),
        ("int4-weight", ("mslk",), "native"),
        ("int4-weight", ("torchao.quantization",), "native"),
        ("nf4", (), "bitsandbytes"),
        ("nf4", ("bitsandbytes",), "native"),
    ],
)
def test_auto_goes_on_without(scheme: str, missing: tuple[str, ...], backend: str, without: Without) -> None:
    without(*missing)
    assert pick(SCHEMES[scheme], "auto", CUDA)[0].name == backend
    without(*MODULES.values(), "mslk")
    chosen, why = pick(SCHEMES[scheme], "auto", CUDA)
    assert (chosen.name, why) == ("native", "the choice for cuda, not measured there")


def test_what_nothing_else_computes_says_what_to_install(without: Without) -> None:
    without(*MODULES.values())
    with pytest.raises(StackError, match=r"pip install 'torchao>=0\.15'"):
        pick(SCHEMES["fp8"], "auto", CUDA)
    without("mslk")
    with pytest.raises(StackError, match=r"needs mslk: pip install 'mslk>=1\.0' .*or use backend 'native'"):
        pick(SCHEMES["int4-weight"], "torchao", CUDA)


@pytest.mark.parametrize("backend", MODULES)
def test_one_that_fails_while_it_is_imported_is_said_alike(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[backend], None)
    with pytest.raises(StackError, match=rf"quantize\(backend='{backend}'\) needs .*pip install .*halted"):
        BACKENDS[backend].prepare(SCHEMES[ONE_EACH[backend]], torch.device("cpu"))


def test_python_is_asked() -> None:
    assert libraries.importable("torch.nn") and not libraries.importable("torch.no_such_part")
    assert not libraries.importable("no_such_library.part")
