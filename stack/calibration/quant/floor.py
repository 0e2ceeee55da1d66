"""The noise floor: what quantization and sparse attention add to one forward pass of the denoiser, measured.

Random part and bias are kept apart: an error that two steps share cancels in their difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ...attention.sage_attn import SageAttention
from ...attention.sparse_attn import SparseAttention
from ...core.errors import StackError
from ...core.passes import Pass
from ...core.progress import ProgressLine
from ...quant.quantize import Quantize
from ...runtime.call_arguments import Call
from ...runtime.stack_like import StackLike
from ..observe import watching_blocks
from ..site_features import BLOCK, SiteFeatures
from .noise import ErrorSplit, errors_of, split_errors
from .plots import plot_floor
from .recording import Recorded, below_quantization, record_calls, taken_off

NEARNESS = 0.02  # of the latent: what one step of a 50-step schedule changes
OUTPUT = "output"  # the denoiser's own; the other names are those of `SiteFeatures`
BLOCKS = "blocks"  # the mean over what each block adds
# After these a step computes something else than the model.
APPROXIMATE = (Quantize.stage, SageAttention.stage, SparseAttention.stage)
# What a floor depends on, beside the passes that approximate.
FACTS = ("family", "machine", "dtype", "blocks", "width", "adapters", "weight_bits", "activation_bits", "quantized_by")


@dataclass(frozen=True)
class NoiseFloor:
    """Relative errors that quantization, 8-bit and sparse attention add, per noise level.

    Attributes:
        sigmas: largest first.
        features: "output", "last hidden state", "whole residual" and "block 0" ... (what each block adds), each with
            one `ErrorSplit` per sigma.
        nearness: distance of the neighbours that separate the random part from the bias: root mean square of the
            disturbance as a share of the latent's.
        neighbours: how many, per call.
        depends: the facts it was measured under, as text by name.
    """

    sigmas: tuple[float, ...]
    features: Mapping[str, tuple[ErrorSplit, ...]]
    nearness: float
    neighbours: int
    depends: Mapping[str, str]

    def __repr__(self) -> str:
        output = self.features[OUTPUT]
        parts = (
            f"{name} {min(s):.2%} to {max(s):.2%}"
            for name, s in (("random", [split.random for split in output]), ("bias", [split.bias for split in output]))
        )
        return (
            f"NoiseFloor(output: {', '.join(parts)} at {len(self.sigmas)} noise levels, {self.neighbours} neighbours)"
        )

    def random(self, feature: str) -> tuple[tuple[float, float], ...]:
        """(sigma, random relative error) of a feature, for `cache(noise=...)`."""
        return tuple((sigma, split.random) for sigma, split in zip(self.sigmas, self.features[feature], strict=True))

    def at_site(self, feature: str) -> tuple[tuple[float, float], ...]:
        """The same of what a site keeps, by its `Site.noise_feature`; "blocks" is the root mean square over all blocks.

        The noise of all blocks together is small beside the stream, and large beside what one block adds.
        """
        if feature != BLOCKS:
            return self.random(feature)
        blocks = [self.random(name) for name in self.features if name.startswith(BLOCK)]
        squares = [[error**2 for _, error in block] for block in blocks]
        means = [sum(column) / len(blocks) for column in zip(*squares, strict=True)]
        return tuple((sigma, mean**0.5) for sigma, mean in zip(self.sigmas, means, strict=True))

    def to_json(self) -> str:
        """Everything, for `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> NoiseFloor:
        """The inverse of `to_json`.

        Raises:
            StackError: the text is none of its kind.
        """
        try:
            read = json.loads(text)
            features = {name: tuple(ErrorSplit(**s) for s in splits) for name, splits in read["features"].items()}
            given = {f.name: read[f.name] for f in fields(cls)}
            return cls(**{**given, "sigmas": tuple(read["sigmas"]), "features": features})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(f"expected the JSON of a noise floor, got something else: {error!r}") from None

    def save_plot(self, path: str | Path) -> None:
        """Draw it; see `plots.plot_floor`."""
        plot_floor(self.sigmas, self.features, Path(path))


def dependencies(stack: StackLike) -> dict[str, str]:
    """The facts behind the passes that approximate, and these passes themselves, as text by name."""
    plan = stack.plan
    stages = [stage for stage in plan.stages if stage.run.stage in APPROXIMATE]
    facts = stages[-1].after if stages else plan.facts
    values = {name: str(getattr(facts, name)) for name in FACTS}
    for stage in stages:
        values[stage.run.stage] = str(stage.run)
        if isinstance(stage.run, Quantize):
            values["feedback"] = stage.run.rounded.source if stage.run.rounded else "none"
    return values


def measure_floor(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int,
    steps: int,
    neighbours: int,
    progress: bool,
    nearness: float = NEARNESS,
    call: Call | None = None,
) -> NoiseFloor:
    """Run the denoiser on the same recorded inputs, and on neighbours of each, with and without what approximates it.

    Args:
        call: further arguments of the recorded request, see `stack.runtime.pipeline_calls.PipelineCalls`.

    Raises:
        StackError: nothing approximates, no pipeline, no prompts, fewer than 2 neighbours, or no nearness.
    """
    approximate = [p for p in stack.passes if p.stage in APPROXIMATE]
    if not approximate:
        raise StackError("nothing is approximated: add .quantize(), .sage_attn() or .sparse_attn() to the stack")
    if neighbours < 2 or not 0 < nearness <= 1:
        raise StackError(
            f"expected 2 or more neighbours and a nearness in (0, 1], got {neighbours} and {nearness}: "
            "without neighbours that differ, random errors and bias cannot be told apart"
        )
    with taken_off(stack), ProgressLine("noise_floor", progress) as bar:
        bar.says("recording")
        recorded = record_calls(stack, prompts, seed, steps, call)
        near = [_neighbours(record, neighbours, nearness, seed) for record in recorded]
        below = below_quantization(stack)
        plain = _features(stack, below, near, bar, "exact call")
        rounded = _features(stack, [*below, *approximate], near, bar, "approximate call")
    sigmas = tuple(sorted({record.context.sigma for record in recorded}, reverse=True))
    features: dict[str, tuple[ErrorSplit, ...]] = {}
    for name in plain[0]:
        errors = [errors_of(f[name], q[name]) for f, q in zip(plain, rounded, strict=True)]
        features[name] = tuple(
            split_errors([e for e, r in zip(errors, recorded, strict=True) if r.context.sigma == sigma])
            for sigma in sigmas
        )
    return NoiseFloor(sigmas, features, nearness, neighbours, dependencies(stack))


def _features(
    stack: StackLike, passes: Sequence[Pass], near: Sequence[Sequence[Recorded]], bar: ProgressLine, phase: str
) -> list[dict[str, list[torch.Tensor]]]:
    """Per call and name, the feature at each neighbour, on the model as these passes make it."""
    found = []
    sites = SiteFeatures(stack.denoiser)
    with stack.beside([*passes, watching_blocks(sites.see)]) as other:
        for group in bar.track(near, phase):
            outputs = [call.run(other).cpu() for call in group]
            found.append({OUTPUT: outputs, **sites.taken()})
    return found


def _neighbours(call: Recorded, count: int, nearness: float, seed: int) -> list[Recorded]:
    """The call on `count` latents near its own: white noise is added to each sample, scaled to the sample's size."""
    latent = call.latent
    generator = torch.Generator().manual_seed(seed + 7919 * call.context.step)
    size = latent.float().square().flatten(1).mean(1).sqrt().mul(nearness).view(-1, *[1] * (latent.ndim - 1))
    noise = [torch.randn(latent.shape, generator=generator).to(latent.device) for _ in range(count)]
    return [call.at((latent.float() + size * sample).to(latent.dtype)) for sample in noise]
