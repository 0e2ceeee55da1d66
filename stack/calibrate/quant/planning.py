"""From a measured sensitivity to a quantize pass with its mix: chosen, measured, and tightened until it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...core.errors import StackError
from ...quant.prepared import Preparation, Prepared
from ...quant.quantize import Quantize
from ...quant.rounding.candidates import RoundingCandidate
from ...runtime.stack_like import StackLike
from .measuring import CANDIDATES, Workshop, measure, workshop
from .mixing import Mix
from .recording import below_quantization, carrying, record_calls, taken_off
from .sensitivity import Sensitivity

ATTEMPTS = 5


def analyse(
    stack: StackLike, prompts: Sequence[str], schemes: Sequence[str], seed: int, steps: int, progress: bool
) -> Sensitivity:
    """The sensitivity of a stack's model. A quantize pass with `max_error` or `max_bytes` gets the mix it asks for.

    Args:
        prompts: of one recorded request; every fourth is held out to judge on, if there are four or more. A dozen or
            more for a mix that holds on others: the text stream sees no more than these.
        schemes: names of `RoundingCandidate`s to choose from; none for `CANDIDATES`.
        seed: of the first prompt, the next one has the next.
        steps: recorded ones, evenly spread over the schedule.
        progress: show a bar.

    Raises:
        StackError: no quantize pass, no pipeline, no prompts, a scheme that cannot be read, `layers` beside a mix, or
            no mix is good enough. The stack is left as it was.
    """
    quantize = next((p for p in stack.passes if isinstance(p, Quantize)), None)
    if quantize is None:
        raise StackError("a sensitivity is that of linears to be quantized: add .quantize() to the stack")
    wanted = bool(quantize.max_error or quantize.max_bytes)
    if wanted and quantize.layers and not quantize.prepared:
        raise StackError("a mix decides about every layer: leave layers= out, and name linears that stay in skip=")
    names = [RoundingCandidate(name).name for name in schemes or CANDIDATES]
    bare = replace(quantize, max_error=0.0, max_bytes=0, prepared=None, layers=None)
    mixed = quantize
    with taken_off(stack):
        calls = record_calls(stack, prompts, seed, steps)
        with carrying(stack, below_quantization(stack)) as below:
            shop = workshop(below, bare, names, calls)
            found = measure(shop, progress)
            if wanted:
                mixed = resolved(shop, found, quantize)
        stack.replace(mixed)
    return found


def resolved(shop: Workshop, found: Sensitivity, quantize: Quantize) -> Quantize:
    """The pass with the mix that it asks for, and the modules that calibration made for it.

    Errors do not add quite as predicted, so a mix for `max_error` is measured, and asked for anew until it holds.
    """
    limit = quantize.max_error
    for _ in range(ATTEMPTS if limit else 1):
        mix = found.mix(max_error=limit) if limit else found.mix(max_bytes=quantize.max_bytes)
        measured = shop.error(_candidates(mix.layers))
        if not limit or measured <= quantize.max_error:
            return _with_mix(shop, quantize, mix, measured)
        limit *= 0.97 * quantize.max_error / measured
    raise StackError(
        f"no mix of these schemes was measured within an error of {quantize.max_error}: the last one came to "
        f"{measured:.4f}; ask for more, or offer schemes with more bits"
    )


def _candidates(layers: Mapping[str, str]) -> dict[str, RoundingCandidate]:
    return {path: RoundingCandidate(name) for path, name in layers.items()}


def _with_mix(shop: Workshop, quantize: Quantize, mix: Mix, measured: float) -> Quantize:
    chosen = _candidates(mix.layers)
    ready = tuple(
        Prepared(path, candidate.name, shop.made[path][candidate.name])
        for path, candidate in chosen.items()
        if not (candidate.plain or candidate.keeps)
    )
    facts = shop.stack.plan.facts_after
    preparation = Preparation(ready, facts.adapters, facts.machine.device, mix.bytes, mix.error, measured)
    return replace(
        quantize,
        layers={path: c.name if c.keeps else c.scheme.name for path, c in chosen.items()},
        prepared=preparation,
    )
