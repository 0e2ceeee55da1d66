"""Fake CUDA: tensors with shapes and the device "cuda", and no numbers. Needs a CUDA build of torch, no GPU.

Every operation of the real classes runs as it would on a GPU, so that tensors on the wrong device, reads that wait and
the number of calls show. `Recorder` counts them; what is read is made up, except for tensors filled with one number,
such as timesteps. What the package works out about a sampler, it works out on the host, with real numbers.
"""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

import stack
from stack.quant import selection as select

READ = 0.01  # what a number read from the device is
ON_THE_HOST = (
    "stack.model_facts.timetable_ahead", "stack.models.sampler._judge", "stack.models.sampler._linear_form",
    "stack.models.sampler.host_copy", "stack.runtime.hook.timetable_of", "stack.runtime.hook.was_made",
)  # fmt: skip
# Their result has the numbers of their first argument:
SAME_NUMBERS = ("select", "view", "_unsafe_view", "expand", "slice", "alias", "clone", "_to_copy", "max", "unsqueeze")
HERE = Path(stack.__file__).parent
# Their result's shape or value is needed on the host:
WAITING = ("nonzero", "_unique2", "unique_dim", "masked_select", "equal", "bincount")
SCALARS = ("tolist", "item", "__float__", "__int__", "__bool__", "__index__")


class Recorder(TorchDispatchMode):
    """Counts calls of operations, and notes where the host waits for the device.

    Attributes:
        calls: operations so far; a view counts as one.
        waits: what made the host wait, with the innermost line of this package that asked for it.
        filled: tensors that hold one number throughout, with that number.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.waits: list[str] = []
        self.filled = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += not str(func).startswith("prim.")  # asking a fake tensor for its device
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name == "_local_scalar_dense":
            return self.read(args[0], "read")
        if name in WAITING and args[0].device.type == "cuda":
            self.note(name)
            if name == "equal":
                return True
            if name == "nonzero":  # half of them are not zero
                return torch.zeros(args[0].numel() // 2, args[0].ndim, dtype=torch.long, device="cuda")
        if name == "bincount":
            return torch.zeros(
                args[2] if len(args) > 2 else kwargs["minlength"], dtype=torch.long, device=args[0].device
            )
        if name in ("_to_copy", "copy_"):
            self._copied(name, args, kwargs)
        result = func(*args, **kwargs)
        number = args[1] if name == "full" else self.filled.get(args[0]) if name in SAME_NUMBERS else None
        if number is not None and isinstance(result, torch.Tensor):
            self.filled[result] = number
        return result

    def _copied(self, name: str, args: Any, kwargs: Any) -> None:
        source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if target is not None and source.device.type != torch.device(target).type and waits:
            self.note(f"copy {source.device.type} to {torch.device(target).type}")

    def note(self, what: str) -> None:
        """The host waits here."""
        ours = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(HERE)]
        where = f"{Path(ours[-1].filename).relative_to(HERE).as_posix()}:{ours[-1].lineno}" if ours else "elsewhere"
        self.waits.append(f"{what} at {where}")

    def read(self, tensor: torch.Tensor, what: str) -> Any:
        """A made-up number, or nested lists of them."""
        if tensor.device.type == "cuda":
            self.note(what)
        number = True if tensor.dtype == torch.bool else READ if tensor.dtype.is_floating_point else 1
        number = self.filled.get(tensor, number)
        return _nested(tuple(tensor.shape), number) if what == "tolist" else number


class NeverYet:
    """An event of a device that is always behind."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def record(self) -> None:
        """It is in the queue."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        self.recorder.note("event")

    def elapsed_time(self, end: Any) -> float:
        return 1.0


def _nested(shape: tuple[int, ...], number: Any) -> Any:
    return [_nested(shape[1:], number) for _ in range(shape[0])] if shape else number


@contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[Recorder]:
    """Within it device "cuda" exists. Yields what is recorded."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda *device: "fake")
        patch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
        for name in SCALARS:
            patch.setattr(torch.Tensor, name, _scalar(name, getattr(torch.Tensor, name), recorder))
        patch.setattr(FakeTensor, "tolist", torch.Tensor.tolist)
        patch.setattr(torch, "Event", lambda *args, **kwargs: NeverYet(recorder))
        patch.setattr(
            select, "_unless_illegal", lambda choice, linear: choice
        )  # it refuses weights that are no plain tensors
        patch.setattr(copy, "deepcopy", _deepcopy(copy.deepcopy))
        for path in ON_THE_HOST:
            module, _, name = path.rpartition(".")
            patch.setattr(path, _on_the_host(getattr(sys.modules[module], name)))
        patch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda *args, **kwargs: None)
        with FakeTensorMode(allow_non_fake_inputs=True), recorder:
            yield recorder


def _on_the_host(real: Any) -> Any:
    """A function that runs without fake tensors, and unrecorded."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return real(*args, **kwargs)

    return run


def _deepcopy(real: Any) -> Any:
    """Fake tensors cannot be copied deeply, their linears can be made again."""

    def deepcopy(thing: Any, memo: Any = None) -> Any:
        if not isinstance(thing, nn.Linear):
            return real(thing, memo)
        with torch.device("meta"):
            made = nn.Linear(thing.in_features, thing.out_features, bias=thing.bias is not None)
        for name, each in thing.named_parameters():
            setattr(made, name, nn.Parameter(torch.empty_like(each), requires_grad=False))
        return made

    return deepcopy


def _scalar(name: str, real: Any, recorder: Recorder) -> Any:
    """Torch reads a number below the dispatcher's reach."""
    kinds = {"__float__": float, "__int__": int, "__bool__": bool, "__index__": int}

    def read(tensor: torch.Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return _on_the_host(real)(tensor)
        return kinds.get(name, lambda number: number)(recorder.read(tensor, name if name == "tolist" else "read"))

    return read
