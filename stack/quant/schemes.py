"""Quantization schemes: what is rounded to what. Who computes them is another question, see `stack.quant.backends`."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import choose

KEEP = "keep"  # in a mixed plan: this linear stays as it is


@dataclass(frozen=True)
class Scheme:
    """What happens to the numbers of a linear.

    Attributes:
        name: as in `quantize("int8")`.
        weight_bits: bits of a stored weight, its scales not counted.
        activation_bits: bits the input is rounded to on the fly, row by row; 0 leaves it in floating point.
        group: weights along the input features that share a scale; 0 is one scale per output channel.
        kind: "int" (evenly spaced levels), "float" (e4m3) or "nf4" (16 quantiles of a Gaussian; Dettmers et al. 2023).
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int
    kind: str

    @property
    def rounds_activations(self) -> bool:
        return self.activation_bits > 0

    def describe(self) -> str:
        """In words, for `explain()`."""
        number = {"int": "integer", "float": "e4m3", "nf4": "NF4"}[self.kind]
        scales = f"per {self.group} weights" if self.group else "per output channel"
        rows = f"activations in {self.activation_bits} bits per token" if self.activation_bits else "activations as is"
        return f"{self.weight_bits}-bit {number} weights, one scale {scales}; {rows}"


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", 8, 8, 0, "int"),
        Scheme("int8-weight", 8, 0, 0, "int"),
        Scheme("int4-weight", 4, 0, 64, "int"),
        Scheme("nf4", 4, 0, 64, "nf4"),
        Scheme("fp8", 8, 8, 0, "float"),
        Scheme("fp8-weight", 8, 0, 0, "float"),
    )
}


def scheme_named(name: str) -> Scheme:
    """A scheme by name.

    Raises:
        StackError: unknown name.
    """
    if name not in SCHEMES:
        raise choose("quantization scheme", name, tuple(SCHEMES))
    return SCHEMES[name]
