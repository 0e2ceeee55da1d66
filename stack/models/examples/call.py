"""One example call of a denoiser: its sizes, and the rules that make an argument from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...core.errors import StackError


@dataclass(frozen=True)
class Sizes:
    """Sizes of an example call.

    Attributes:
        batch: number of samples.
        frames: of a video, in tokens; classes of images do not look at it.
        rows: of the image, in tokens.
        columns: of the image, in tokens.
        text: text tokens of each sample.
        first: number of the first sample. The samples of `Sizes(batch=2)` are those of `Sizes(first=0)` and
            `Sizes(first=1)`, so that a batch can be compared with its samples one by one.
        noise: noise level in (0, 1), from which the timestep follows.
    """

    batch: int = 1
    frames: int = 3
    rows: int = 4
    columns: int = 6
    text: int = 5
    first: int = 0
    noise: float = 0.7


@dataclass(frozen=True)
class Call:
    """What the rules of arguments are given: the configuration of the denoiser and the sizes of the call."""

    config: Mapping[str, Any]
    sizes: Sizes
    video: bool = False
    time_scale: float = 1000.0

    @property
    def frames(self) -> int:
        """Frames of tokens: 1 where the class makes images."""
        return self.sizes.frames if self.video else 1

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent pixels of a token along frames, rows and columns; 1 where the configuration names no patch."""
        names = ("patch_size", "all_patch_size", "latent_patch_size")
        size = next((self.config[name] for name in names if self.config.get(name)), 1)
        size = tuple(size) if isinstance(size, list | tuple) else (size,)
        size = (self.config.get("patch_size_t") or 1, *size)[-3:] if len(size) < 3 else size
        return (size[0], size[-1], size[-1]) if len(size) == 2 else size

    def size(self, word: str) -> int:
        """The number behind one word of a shape.

        Args:
            word: B batch, F H W latent frames and pixels, N image tokens, T text tokens, A audio tokens, P latent
                pixels of a token, C latent channels, an integer, an entry of the configuration, or some of these: the
                first that the configuration has ("a|b"), their product ("a*b") or sum ("a+b").

        Raises:
            StackError: the configuration has no such entry.
        """
        if "+" in word:
            return sum(self.size(part) for part in word.split("+"))
        if "*" in word:
            return math.prod(self.size(part) for part in word.split("*"))
        sizes, patch = self.sizes, self.patch
        known = {
            "B": sizes.batch,
            "F": self.frames * patch[0],
            "H": sizes.rows * patch[1],
            "W": sizes.columns * patch[2],
            "N": sizes.rows * sizes.columns * self.frames,
            "T": sizes.text,
            "A": 2 * sizes.frames + 1,
            "P": math.prod(patch),
        }
        if word in known:
            return known[word]
        if word.lstrip("-").isdigit():
            return int(word)
        for name in ("in_channels|in_visual_dim|latent_dim|io_channels" if word == "C" else word).split("|"):
            value = self.config.get(name)
            value = value[0] if isinstance(value, list | tuple) else value
            if value:
                return int(value)
        raise StackError(f"the configuration has no {word!r} for the shape of an argument")

    def shape(self, words: str) -> tuple[int, ...]:
        """The shape that these words say."""
        return tuple(self.size(word) for word in words.split())

    def each(self, name: str, make: Callable[[torch.Generator], torch.Tensor]) -> list[torch.Tensor]:
        """One tensor per sample, drawn from the argument's name and the number of the sample alone."""
        first = self.sizes.first
        return [
            make(torch.Generator().manual_seed(zlib.crc32(f"{name} {index}".encode())))
            for index in range(first, first + self.sizes.batch)
        ]


Rule = Callable[[str, Call], Any]
"""(name of the argument, call) to its value; None where the class does without."""


def noise(words: str) -> Rule:
    """Normal numbers. A leading B stands for the batch; without it all samples share one tensor."""

    def rule(name: str, call: Call) -> torch.Tensor:
        first, *rest = words.split()
        if first != "B":
            return torch.randn(call.shape(words), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        shape = call.shape(" ".join(rest))
        return torch.stack(call.each(name, lambda source: torch.randn(shape, generator=source)))

    return rule


def listed(words: str) -> Rule:
    """A list of one tensor of normal numbers per sample."""

    def rule(name: str, call: Call) -> list[torch.Tensor]:
        shape = call.shape(words)
        return call.each(name, lambda source: torch.randn(shape, generator=source))

    return rule


def whole(words: str, below: str) -> Rule:
    """Whole numbers from 0 to below what `below` says, per sample. `words` begins with B."""

    def rule(name: str, call: Call) -> torch.Tensor:
        shape, top = call.shape(words)[1:], call.size(below)
        return torch.stack(call.each(name, lambda source: torch.randint(0, top, shape, generator=source)))

    return rule


def filled(words: str, value: float, dtype: torch.dtype = torch.float32) -> Rule:
    """The same value everywhere."""
    return lambda name, call: torch.full(call.shape(words), value, dtype=dtype)


def where(entry: str, rule: Rule, otherwise: Rule | None = None) -> Rule:
    """What this rule makes where the configuration has the entry and it is not zero; else the other, or nothing."""
    without = otherwise or always(None)
    return lambda name, call: (rule if call.config.get(entry) else without)(name, call)


def rotary(words: str) -> Rule:
    """Cosines and sines of this shape, of angles that all samples share."""
    turns = noise(f"1 {words}")
    return lambda name, call: (turns(name, call)[0].cos(), turns(name, call)[0].sin())


def always(value: Any) -> Rule:
    """This very value."""
    return lambda name, call: value


def counted(words: str) -> Rule:
    """0, 1, 2 and so on along the last axis, the same along the others."""

    def rule(name: str, call: Call) -> torch.Tensor:
        shape = call.shape(words)
        return torch.arange(shape[-1]).expand(shape)

    return rule


def number(word: str) -> Rule:
    """A size as a plain integer."""
    return lambda name, call: call.size(word)


def level(name: str, call: Call) -> torch.Tensor:
    """(B,): the timestep of the call's noise level."""
    return torch.full((call.sizes.batch,), call.sizes.noise * call.time_scale)


def grid(call: Call, axes: int) -> torch.Tensor:
    """(N, axes): frame, row and column of every token, then zeros where there are more axes."""
    sizes = call.sizes
    places = torch.cartesian_prod(torch.arange(call.frames), torch.arange(sizes.rows), torch.arange(sizes.columns))
    ids = torch.zeros(len(places), axes)
    ids[:, :3] = places
    return ids


def sequence(call: Call) -> torch.Tensor:
    """(T + N, 3): zeros for the text tokens, then the grid of the image's."""
    return torch.cat([torch.zeros(call.sizes.text, 3), grid(call, 3)])


def multiples_of(unit: int) -> Callable[[Sizes], Sizes]:
    """Rounds rows and columns up to multiples of this."""
    return lambda sizes: replace(
        sizes, rows=math.ceil(sizes.rows / unit) * unit, columns=math.ceil(sizes.columns / unit) * unit
    )
