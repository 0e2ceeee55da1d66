"""How much each linear's rounding costs the denoiser's output, and the best mix of schemes for a target.

Squared errors are taken to add: roundings of different linears are independent of each other, and what one of them does
to the output is small. How well that holds is measured and kept (`Sensitivity.whole`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...core.errors import StackError, choose
from ...quant.schemes import KEEP
from .mixing import Mix, MixChoice, fewest_bytes, smallest_error


@dataclass(frozen=True)
class LayerSensitivity:
    """One linear.

    Attributes:
        path: in the denoiser.
        shape: (out, in) features.
        gain: squared relative error of the denoiser's output per squared relative error of this linear's own output,
            the model's own rounding left out.
        local: by scheme, the squared relative error of the linear's own output on recorded inputs.
        bytes: by scheme, what its weight then takes, by storage.
    """

    path: str
    shape: tuple[int, int]
    gain: float
    local: Mapping[str, float]
    bytes: Mapping[str, int]

    def error(self, scheme: str) -> float:
        """Squared relative error of the denoiser's output when only this linear is rounded."""
        return self.gain * self.local[scheme]


@dataclass(frozen=True)
class Sensitivity:
    """Of a model, over the recorded calls.

    Attributes:
        layers: one per linear, in module order.
        schemes: what was tried, `KEEP` among them.
        reference: the scheme that each linear was put into alone, the rest of the model as it is, for its gain.
        sigmas: noise levels of the recorded calls, largest first.
        curve: by sigma and layer, the relative output error of that layer alone in the reference scheme.
        rounding: relative error of the output that any change at all causes, through the model's own 16-bit roundings.
        whole: by scheme, (predicted, measured) relative error of the output with every linear in it.
        depends: the facts it was measured under.
    """

    layers: tuple[LayerSensitivity, ...]
    schemes: tuple[str, ...]
    reference: str
    sigmas: tuple[float, ...]
    curve: Mapping[str, tuple[float, ...]]
    rounding: float
    whole: Mapping[str, tuple[float, float]]
    depends: Mapping[str, str]

    def bytes_of(self, scheme: str) -> int:
        """What the weights take with every linear in a scheme; one that does not fit a linear leaves it as it is.

        Raises:
            StackError: a scheme that was not tried.
        """
        if scheme not in self.schemes:
            raise choose("scheme of this analysis", scheme, self.schemes)
        return sum(layer.bytes.get(scheme, layer.bytes[KEEP]) for layer in self.layers)

    def mix(self, max_error: float = 0.0, max_bytes: int | str = 0) -> Mix:
        """The cheapest mix within a relative error of the output, or the most exact one within a number of bytes.

        Args:
            max_bytes: or a scheme's name: as many as that scheme takes in every linear.

        Raises:
            StackError: not exactly one of both, or no mix is good enough.
        """
        if bool(max_error) == bool(max_bytes):
            raise StackError("expected either max_error or max_bytes, got " + ("both" if max_error else "neither"))
        options = {
            layer.path: [MixChoice(s, layer.bytes[s], layer.error(s)) for s in layer.local] for layer in self.layers
        }
        if max_error:
            own = max(0.0, max_error**2 - self.rounding**2) ** 0.5
            found = fewest_bytes(options, own)
        else:
            found = smallest_error(options, self.bytes_of(max_bytes) if isinstance(max_bytes, str) else max_bytes)
        return replace(found, error=(found.error**2 + self.rounding**2) ** 0.5)

    def to_json(self) -> str:
        """Everything, for `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`.

        Raises:
            StackError: the text is none of its kind.
        """
        try:
            read = json.loads(text)
            return cls(
                layers=tuple(LayerSensitivity(**{**each, "shape": tuple(each["shape"])}) for each in read["layers"]),
                schemes=tuple(read["schemes"]),
                reference=read["reference"],
                sigmas=tuple(read["sigmas"]),
                curve={name: tuple(values) for name, values in read["curve"].items()},
                rounding=read["rounding"],
                whole={name: (pair[0], pair[1]) for name, pair in read["whole"].items()},
                depends=read["depends"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(f"expected the JSON of a sensitivity, got something else: {error!r}") from None

    def save_plot(self, path: str | Path) -> None:
        """Draw it; see `plots.plot_sensitivity`."""
        from .plots import plot_sensitivity

        plot_sensitivity(self, Path(path))
