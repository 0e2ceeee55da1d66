"""What the smoke part runs: every preset, scheme and pass, alone and together, on the trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stack import Stack
from stack.caching.gate_policies import MagnitudePolicy
from stack.caching.methods import PRESETS, READING
from stack.caching.sites.fastcache import FastCacheSite
from stack.core.facts import Machine
from stack.quant.backends import BACKENDS
from stack.quant.schemes import SCHEMES

PROMPT = "a red ring left of a blue star"
HOPPER = Machine("cuda", capability=(9, 0))
# The cap is below what this preset keeps at 64 x 64 pixels, so that some of it lives on the host.
CAP = 6_000_000
TILE = {"keep": 0.5, "even_if_slower": True, "block": 128}

# What is left out, and why. A test holds every preset and every scheme of every backend against the cases and this.
NO_WHEEL = "its package is not among the wheels of the run: it computes these weights for memory, not for speed"
EXCLUDED_BACKENDS = {"bitsandbytes": NO_WHEEL, "quanto": NO_WHEEL}
EXCLUDED_SCHEMES = {
    ("int4-weight", "torchao"): "torchao's 4-bit product is in a package of its own that is not among the wheels",
}
EXCLUDED_PRESETS = {
    name: "the plain name runs the same code on other steps, and a corrector"
    for name in PRESETS
    if name.endswith(READING)
}


@dataclass(frozen=True)
class Case:
    """A stack whose pictures are compared with those of a CPU.

    Attributes:
        build: adds the passes to an empty stack.
        dtype: of the model; noise is drawn in it, so that pictures compare only within one dtype.
        compiled: the same on compiled blocks. Its reference is made without compiling.
        needs_gpu: a CPU cannot compute it; it is compared with the model without passes.
        reference: the case whose latent it is compared with; "" for its own.
    """

    name: str
    build: Callable[[Stack], Stack]
    dtype: str = "bfloat16"
    compiled: bool = False
    needs_gpu: bool = False
    reference: str = ""


def quantized(scheme: str, backend: str) -> Case:
    """A scheme computed by a backend."""
    return Case(f"{scheme} {backend}", lambda s: s.quantize(scheme, backend=backend), needs_gpu=scheme == "fp8")


def cached(preset: str) -> Case:
    """A preset as it is; what its gate or its maps need is fitted on the prompt first."""

    def build(stack: Stack) -> Stack:
        stack.cache(preset)
        if isinstance(PRESETS[preset].gate, MagnitudePolicy):
            stack.fit_gate([PROMPT])
        if needs_maps(preset):
            stack.fit_maps([PROMPT], progress=False)
        return stack

    return Case(f"cache {preset}", build, "float32")


def needs_maps(preset: str) -> bool:
    """Whether a preset replaces blocks by linear maps."""
    site = PRESETS[preset].site
    return isinstance(site, FastCacheSite) and site.needs_maps


def computed(scheme: str, backend: str) -> bool:
    """Whether a Hopper GPU with the wheels of the run computes a scheme by a backend."""
    left_out = backend in EXCLUDED_BACKENDS or (scheme, backend) in EXCLUDED_SCHEMES
    return not left_out and not BACKENDS[backend].refuses(SCHEMES[scheme], HOPPER)


def cases() -> list[Case]:
    """All of them; what is most telling comes first."""
    return [
        Case("base", lambda s: s, "float32"),
        Case("base bf16", lambda s: s),
        cached("svd"),
        cached("predictor-corrector"),
        *(quantized(scheme, backend) for scheme in SCHEMES for backend in BACKENDS if computed(scheme, backend)),
        *TOGETHER,
        *(cached(name) for name in PRESETS if name not in ("svd", "predictor-corrector", *EXCLUDED_PRESETS)),
        *COMPILED,
    ]


# One of each kind: a dry run has to be short. `--rows '*'` runs all.
DRY = (
    "base", "base bf16", "cache svd", "cache predictor-corrector", "cache toca", "int8 native", "sparse 0.5",
    "8-step adapter", "int8 + sparse + predictor-corrector",
)  # fmt: skip

TOGETHER = (
    Case("fp8 + svd", lambda s: s.quantize("fp8").cache("svd"), needs_gpu=True),
    Case("int8 torchao + svd", lambda s: s.quantize("int8", backend="torchao").cache("svd")),
    Case("sparse 0.5", lambda s: s.sparse_attn(**TILE)),
    Case("8-step adapter", lambda s: s.distill("shapes-flux-8"), "float32"),
    Case("8-step adapter, switchable", lambda s: s.distill("shapes-flux-8", switchable=True), "float32"),
    Case("int8, ends in bf16", lambda s: s.quantize("int8", backend="native", ends="keep")),
    # Only a GPU has another place for its state, the host.
    Case(
        "svd-published-blocks, capped", lambda s: s.cache("svd-published-blocks", max_bytes=CAP), "float32",
        needs_gpu=True, reference="cache svd-published-blocks",
    ),
    Case("svd, error budget", lambda s: s.cache("svd", max_error=0.05), "float32"),
    Case(
        "int8 + sparse + predictor-corrector",
        lambda s: s.quantize("int8", backend="native").sparse_attn(**TILE).cache("predictor-corrector"),
    ),
)  # fmt: skip
COMPILED = (
    Case("compiled", lambda s: s, compiled=True),
    Case("compiled + taylorseer", lambda s: s.cache("taylorseer"), compiled=True),
    Case(
        "compiled + fp8 + sparse + predictor-corrector",
        lambda s: s.quantize("fp8").sparse_attn(**TILE).cache("predictor-corrector"),
        compiled=True,
        needs_gpu=True,
    ),
)
