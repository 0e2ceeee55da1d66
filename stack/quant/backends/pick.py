"""Which backend computes a scheme on a machine: from measured figures, and why.

Figures of CUDA are what others have published: nothing of this project was measured there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import StackError, choose
from ...core.facts import Machine
from ..schemes import Scheme
from .base import Backend
from .bitsandbytes import BitsAndBytes
from .native import Native
from .quanto import Quanto
from .torchao import TorchAO

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Native(), TorchAO(), BitsAndBytes(), Quanto())}


@dataclass(frozen=True)
class MeasuredSpeed:
    """What a backend was measured to give.

    Attributes:
        speed: of its linears over those in bf16, compiled where that is what it is made for.
        where: on what, and who measured. The order of a scheme's rows does not matter.
    """

    scheme: str
    device: str
    backend: str
    speed: float
    where: str


_CPU = "linears 1,024 wide at 1,024 tokens, Zen 4 with VNNI"
_H100 = "FLUX.1-dev on one H100, compiled, whole pipeline; published by sayakpaul/diffusers-torchao"
MEASURED = (
    MeasuredSpeed("int8", "cpu", "native", 2.02, _CPU),
    MeasuredSpeed("int8", "cpu", "torchao", 1.27, _CPU),
    MeasuredSpeed("int8", "cpu", "bitsandbytes", 0.82, _CPU),
    MeasuredSpeed("int8", "cuda", "torchao", 1.24, _H100),
    MeasuredSpeed("fp8", "cuda", "torchao", 1.39, _H100),
    MeasuredSpeed("int8-weight", "cpu", "torchao", 0.99, _CPU),
    MeasuredSpeed("int8-weight", "cpu", "native", 0.94, _CPU),
    MeasuredSpeed("int8-weight", "cpu", "quanto", 0.39, _CPU),
    MeasuredSpeed("int8-weight", "cuda", "torchao", 0.91, _H100),
    MeasuredSpeed("fp8-weight", "cpu", "native", 0.87, _CPU),
    MeasuredSpeed("fp8-weight", "cpu", "torchao", 0.62, _CPU),
    MeasuredSpeed("fp8-weight", "cuda", "torchao", 0.96, _H100),
    MeasuredSpeed("int4-weight", "cpu", "native", 0.87, _CPU),
    MeasuredSpeed("int4-weight", "cpu", "quanto", 0.4, _CPU),
    MeasuredSpeed("nf4", "cpu", "bitsandbytes", 0.97, _CPU),
    MeasuredSpeed("nf4", "cpu", "native", 0.9, _CPU),
)
# A library has to be this much faster than what needs none.
WORTH_INSTALLING = 1.15
# Where nobody measured: bitsandbytes has kernels of its own for NF4 on GPUs, torchao for the rest.
PREFERRED = {("nf4", "cuda"): "bitsandbytes", ("int4-weight", "cuda"): "torchao"}


def pick(scheme: Scheme, wanted: str, machine: Machine) -> tuple[Backend, str]:
    """The backend for a scheme, and why it is the one.

    Args:
        wanted: a backend's name, or "auto".

    Raises:
        StackError: an unknown name, or no backend, or not this one, computes the scheme on the machine.
    """
    if wanted != "auto":
        if wanted not in BACKENDS:
            raise choose("quantization backend", wanted, ("auto", *BACKENDS))
        if reason := BACKENDS[wanted].refuses(scheme, machine):
            raise StackError(reason)
        return BACKENDS[wanted], "asked for"
    able = [name for name, backend in BACKENDS.items() if not backend.refuses(scheme, machine)]
    if not able:
        raise StackError("; ".join(dict.fromkeys(b.refuses(scheme, machine) for b in BACKENDS.values())))
    known = [m for m in MEASURED if (m.scheme, m.device) == (scheme.name, machine.device) and m.backend in able]
    unknown = [name for name in able if name not in {m.backend for m in known}]
    known.sort(key=lambda m: -m.speed * (WORTH_INSTALLING if m.backend == Native.name else 1))
    if known:
        return BACKENDS[known[0].backend], _because(known, unknown, machine.device)
    name = PREFERRED.get((scheme.name, machine.device), able[0])
    chosen = name if name in able else able[0]
    return BACKENDS[chosen], f"the choice for {machine.device}, not measured there"


def _because(known: list[MeasuredSpeed], unknown: list[str], device: str) -> str:
    best, *others = known
    beside = "".join(f", {m.backend} {m.speed:g}x" for m in others)
    rest = f"; not measured on {device}: {', '.join(unknown)}" if unknown else ""
    return f"{best.speed:g}x over bf16{beside} ({best.where}){rest}"
