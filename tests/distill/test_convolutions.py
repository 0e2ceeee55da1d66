"""Updates of convolutions, as LoRAs of U-Nets have them: what is read, what is refused, and what is added."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from stack import StackError
from stack.core.installer import Installer
from stack.distill.fuse import fuse
from stack.distill.lora import LoraFile, layers_of, updates
from stack.distill.side import SideConv2d, put_beside

X = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    )  # fmt: skip


def lora(down: tuple[int, ...] = (4, 6, 3, 3), up: tuple[int, ...] = (8, 4, 1, 1), path: str = "0") -> LoraFile:
    made = torch.Generator().manual_seed(2)
    factors = {"lora_A.weight": torch.randn(down, generator=made), "lora_B.weight": torch.randn(up, generator=made)}
    return LoraFile("x", {f"{path}.{key}": value for key, value in factors.items()}, alpha=2.0)


def test_what_is_added_is_the_one_convolution_after_the_other() -> None:
    root = net()
    (update,) = updates(lora(), root).values()
    low = functional.conv2d(X, update.down, None, stride=2, padding=1)
    wanted = root[0](X) + 0.7 * 0.5 * functional.conv2d(low, update.up)
    assert update.delta().shape == (8, 6, 3, 3)
    install, before = Installer(), root[0].weight.detach().clone()
    assert fuse(root, {"0": update}, 0.7, install).linears == 1
    torch.testing.assert_close(root[0](X), wanted, atol=1e-5, rtol=1e-4)
    install.rollback()
    assert torch.equal(root[0].weight, before)
    assert put_beside(root, {"0": update}, 0.7, install) == 1 and isinstance(root[0], SideConv2d)
    torch.testing.assert_close(root[0](X), wanted, atol=1e-5, rtol=1e-4)


def test_only_plain_convolutions_can_have_one() -> None:
    assert list(layers_of(net())) == ["0"], "not those of groups, nor those that wrap around"


BAD = {
    "another kernel": ({"down": (4, 6, 1, 1)}, "of 6 in and 8 out features, 1 x 1, the model's is 6 in and 8 out"),
    "two axes": ({"down": (4, 6), "up": (8, 4)}, r"expected \(R, K, H, W\) and \(N, R, 1, 1\) of one rank R"),
    "wide up": ({"up": (8, 4, 3, 3)}, r"found \(4, 6, 3, 3\) and \(8, 4, 3, 3\)"),
    "other ranks": ({"up": (8, 5, 1, 1)}, "of one rank R"),
    "groups": ({"path": "1"}, "expected LoRA keys of its linears; found 1"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(StackError, match=said):
        updates(lora(**changed), net())  # type: ignore[arg-type]  # shapes and a path by name
