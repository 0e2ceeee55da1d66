"""Naive joining against the layer: every cache on every variant, by mean squared error against it uncached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from cachebench.bench import pictures
from cachebench.record import Record
from rich.console import Console

from stack import Stack
from stack.calibration.quant.floor import NoiseFloor
from stack.compat.noise import Floor
from stack.reference.captions import captions

from .contestants import Contestant, as_called, contestants
from .variants import Variant, variants

SEED, FIT_SEED = 11, 2000


@dataclass
class Matrix:
    """One model's matrix, measured row by row; what the record knows is not measured again.

    Attributes:
        texts: prompts measured on, each with its own seed.
    """

    model: str
    pipe: Any
    record: Record
    prompts: int
    made: dict[str, torch.Tensor] = field(default_factory=dict)
    latents: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    floors: dict[str, NoiseFloor] = field(default_factory=dict)
    texts: list[str] = field(init=False)
    fit_texts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = captions(self.prompts, seed=SEED, model=self.model)
        self.fit_texts = [t for t in captions(self.prompts + 6, seed=77, model=self.model) if t not in self.texts][:4]

    def rows(self, wanted: Callable[[str], bool], called: bool = False) -> Iterator[dict[str, Any]]:
        """Every row of the variants that are wanted; of the defaults alone where only what is called so is."""
        for variant in variants(self.model):
            if not wanted(variant.name):
                continue
            others = [] if called else contestants(variant, self.maps, self.noise)
            for contestant in [*others, *as_called(variant)]:
                key = f"{variant.name}: {contestant.method}, {contestant.kind}"
                row = self.record.remember(key, lambda v=variant, c=contestant: self.row(v, c))
                equal = not row["mse"]
                figure = "as uncached" if equal else f"{row['psnr']:.1f} dB"
                Console().print(f"{key}: {figure}, {row['cached']} steps cached", highlight=False)
                yield row

    def row(self, variant: Variant, contestant: Contestant) -> dict[str, Any]:
        """One cache on one variant."""
        base = self.base(variant)
        with contestant.put(self.pipe) as stack:
            made, latents = self.run(stack, variant)
            report = stack.report()
        losses = (made - base).square().flatten(1).mean(1)
        kinds = [record.kind for record in report.steps]
        settled = max((step for step, kind in enumerate(kinds) if kind != "full"), default=-1) + 1
        return {
            "variant": variant.name, "method": contestant.method, "kind": contestant.kind, "plain": variant.plain,
            "bound": variant.bound, "steps": variant.steps, "mse": float(losses.mean()),
            "psnr": float(-10 * losses.mean().log10()), "each": [float(-10 * x.log10()) for x in losses],
            "against the plain model": float(-10 * (made - self.plain(variant)).square().mean().log10()),
            "cached": sum(kind != "full" for kind in kinds),
            "carried": _apart(latents, self.latents[variant.name], settled),
            "warnings": report.warnings,
        }  # fmt: skip

    def run(self, stack: Stack, variant: Variant) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Pictures of all prompts in one batch, and the latent that every step starts from."""
        latents: list[torch.Tensor] = []

        def note(denoiser: Any, args: Any, given: dict[str, Any]) -> None:
            latents.append((args[0] if args else given["hidden_states"]).detach().float().clone())

        handle = self.pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            return pictures(stack, self.texts, variant.steps, SEED), latents
        finally:
            handle.remove()

    def base(self, variant: Variant) -> torch.Tensor:
        """The variant uncached."""
        if variant.name not in self.made:
            with variant.build(self.pipe) as stack:
                self.made[variant.name], self.latents[variant.name] = self.run(stack, variant)
        return self.made[variant.name]

    def plain(self, variant: Variant) -> torch.Tensor:
        """The plain model at as many steps."""
        return self.base(next(v for v in variants(self.model) if v.name == variant.plain))

    def alone(self) -> dict[str, float]:
        """PSNR of each variant uncached against the plain model at as many steps."""
        found = {}
        for variant in variants(self.model):
            if variant.name != variant.plain:
                key = f"{variant.name}: alone"
                found[variant.name] = self.record.remember(
                    key, lambda v=variant: -10 * float((self.base(v) - self.plain(v)).square().mean().log10())
                )
        return found

    def noise(self, name: str, feature: str) -> Floor:
        """What a variant's features hold of noise, by `Site.noise_feature`, measured on other prompts."""
        if name not in self.floors:
            variant = next(v for v in variants(self.model) if v.name == name)
            self.floors[name] = variant.build(self.pipe).noise_floor(self.fit_texts[:2], FIT_SEED, progress=False)
        return self.floors[name].at_site(feature)

    def maps(self, name: str) -> str:
        """FastCache's maps fitted on a variant, in a file that later runs find again."""
        kept = Path(gettempdir()) / "ditstack-bench"
        path = kept / f"maps-{self.model}-{name.replace(' ', '_').replace('%', '')}.safetensors"
        if not path.is_file():
            kept.mkdir(parents=True, exist_ok=True)
            variant = next(v for v in variants(self.model) if v.name == name)
            stack = variant.build(self.pipe).cache("fastcache-published-gate")
            try:
                stack.fit_maps(self.fit_texts, seed=FIT_SEED, save=path, progress=False)
            finally:
                stack.undo()
        return str(path)


def _apart(latents: list[torch.Tensor], uncached: list[torch.Tensor], step: int) -> float | None:
    """Mean squared difference of the latents that a step starts from; None behind the last step, or where there is
    none."""
    if not 0 < step < len(uncached):
        return None
    return float((latents[step] - uncached[step]).square().mean())
