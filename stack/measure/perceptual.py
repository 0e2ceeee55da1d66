"""A perceptual distance between pictures: shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv:2207.13686).

Its trained AlexNet comes in the wheel `stlpips-pytorch`, of which only the weights are read: the package itself needs
libraries that it does not declare. Pictures are float (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .wheels import weights_of

WHEEL, WEIGHTS = "stlpips-pytorch", "alex_shift_tolerant.pth"
SMALLEST = 128  # pixels: smaller pictures are enlarged to this, since the network's features are some ten pixels wide
SIZES = ((3, 64, 11, 2), (64, 192, 5, 2), (192, 384, 3, 1), (384, 256, 3, 1), (256, 256, 3, 1))
# Where a convolution's weights lie in the file: (slice, place in it).
PLACES = ((1, 0), (2, 5), (3, 9), (4, 11), (5, 13))


class Perceptual(nn.Module):
    """Distance by the features of five layers: unit-normalised, squared differences, weighted, averaged over places.

    0 for equal pictures. On smooth pictures of 64 pixels, noise of 1 % makes about 0.01 and of 5 % about 0.4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, size, padding=pad) for a, b, size, pad in SIZES)
        self.heads = nn.ModuleList(nn.Conv2d(b, 1, 1, bias=False) for _, b, _, _ in SIZES)
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.register_buffer("blur", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Unit-normalised features (B, C, h, w) of the five layers."""
        height, width = pictures.shape[-2:]
        if min(height, width) < SMALLEST:
            grown = SMALLEST / min(height, width)
            size = (round(height * grown), round(width * grown))
            pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        values, found = (2 * pictures - 1 - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for layer, convolution in enumerate(self.convolutions):
            if layer in (1, 2):
                values = self._halved(F.max_pool2d(values, 3, stride=1))
            values = convolution(values)
            values = F.relu(self._halved(values) if layer == 0 else values)
            found.append(values / (values.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def _halved(self, values: torch.Tensor) -> torch.Tensor:
        """Blurred and every second value kept, so that a shift by one pixel changes little."""
        channels = values.shape[1]
        kernel = self.get_buffer("blur").expand(channels, 1, 3, 3)
        return F.conv2d(F.pad(values, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)

    @torch.no_grad()
    def between(self, some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> torch.Tensor:
        """Distances (B,) by features of `features`: those of a reference are made once."""
        parts = [head((a - b).square()).mean((1, 2, 3)) for head, a, b in zip(self.heads, some, others, strict=True)]
        return torch.stack(parts).sum(0)

    def forward(self, pictures: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of pictures (B, 3, H, W) to reference pictures of the same size."""
        return self.between(self.features(pictures), self.features(reference))


def load_perceptual() -> Perceptual:
    """The distance with its trained weights.

    Raises:
        StackError: the wheel with the weights is not installed.
    """
    made = Perceptual()
    made.load_state_dict(renamed(weights_of(WHEEL, WEIGHTS, "perceptual distance")))
    return made.eval().requires_grad_(False)


def renamed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's entries under this module's names."""
    named = {f"heads.{layer}.weight": weights[f"lin{layer}.model.1.weight"] for layer in range(len(SIZES))}
    for layer, (part, place) in enumerate(PLACES):
        for kind in ("weight", "bias"):
            named[f"convolutions.{layer}.{kind}"] = weights[f"net.slice{part}.{place}.{kind}"]
    blur = weights["net.slice1.1.filt"][0, 0]
    return named | {"blur": blur, "shift": weights["scaling_layer.shift"], "scale": weights["scaling_layer.scale"]}
