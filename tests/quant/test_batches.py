"""A batch against its samples one by one: rows of different samples never meet in a quantized linear.

What remains comes from before: a floating-point product of another number of rows rounds differently by 1e-7, which
moves a value across the border between two 8-bit levels now and then. One level is 1/127 of the row's largest value.
That rows of one int8 linear are the same bits alone and in a batch, `linears/test_int8.py` holds.
"""

from __future__ import annotations

import pytest
import torch

from stack import Stack
from stack.core.facts import machine_of
from stack.quant.backends import BACKENDS
from stack.quant.schemes import SCHEMES

from ..conftest import picture, tiny_pipe

PROMPTS = ["a red ring", "a blue star", "a green circle"]
CPU = torch.device("cpu")
ABLE = [
    (scheme, backend)
    for scheme in SCHEMES
    for backend in BACKENDS
    if not BACKENDS[backend].refuses(SCHEMES[scheme], machine_of(CPU))
    # quanto compiles C++ for half a minute when its 4-bit product is first used. An interrupted compile leaves a lock
    # beside its source, for which the next one waits without an end.
    and (scheme, backend) != ("int4-weight", "quanto")
]


def one_by_one(run: object, steps: int) -> torch.Tensor:
    return torch.cat([picture(run, steps, prompt=[text], seed=1 + i) for i, text in enumerate(PROMPTS)])


@pytest.mark.parametrize(("scheme", "backend"), ABLE)
def test_a_batch_is_its_samples_as_near_as_the_scheme_rounds(scheme: str, backend: str) -> None:
    plain = tiny_pipe()
    exact = picture(plain, 6, prompt=PROMPTS)
    assert (exact - one_by_one(plain, 6)).abs().max() < 1e-5
    with Stack(tiny_pipe(), steps=6).quantize(scheme, backend=backend, min_features=16) as stack:
        together, alone = picture(stack, 6, prompt=PROMPTS), one_by_one(stack, 6)
    rounding = float((together - exact).square().mean().sqrt())
    apart = float((together - alone).square().mean().sqrt())
    # Weights are rounded alike whatever is multiplied with them; activations are rounded anew.
    assert apart < (rounding if SCHEMES[scheme].rounds_activations else 1e-5), (apart, rounding)
