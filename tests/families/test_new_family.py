"""Adding a family: nothing where its class calls things as others do, and at most 20 lines of data where not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from stack import Stack, StackError
from stack.models import families
from stack.models.derive.wiring import wiring_of
from stack.models.examples.call import noise
from stack.models.families import FAMILIES, FamilyData, register_family
from stack.models.small import Sizes, small

from .classes import LEVELS

LINES = 20


class Mixer(nn.Module):  # type: ignore[misc]
    """Tokens, moved by the mean of the text and by one hidden layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_mean, self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, tokens: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.to_mean(prompt.mean(1, keepdim=True))
        moved: torch.Tensor = tokens + self.down(nn.functional.gelu(self.up(tokens)))
        return moved


class Base(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A denoiser of two lists of blocks over latent pixels."""

    config_name = "config.json"

    def parts(self, channels: int, dim: int, text_dim: int, num_layers: int) -> None:
        self.enter, self.text = nn.Linear(channels, dim), nn.Linear(text_dim, dim)
        self.coarse = nn.ModuleList(Mixer(dim) for _ in range(num_layers))
        self.fine = nn.ModuleList(Mixer(dim) for _ in range(num_layers))
        self.leave = nn.Linear(dim, channels)

    def denoised(self, latent: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) of the same."""
        tokens = self.enter(latent.flatten(2).mT) + (time / 1000).reshape(-1, 1, 1)
        for block in [*self.coarse, *self.fine]:
            tokens = block(tokens, self.text(text))
        made: torch.Tensor = self.leave(tokens).mT.reshape(latent.shape)
        return made


class PlainTransformer2DModel(Base):
    """Its arguments have names that diffusers has, though in no class of its own all three of them."""

    @register_to_config  # type: ignore[misc]
    def __init__(self, in_channels: int = 4, hidden_size: int = 64, text_dim: int = 96, num_layers: int = 4):
        super().__init__()
        self.parts(in_channels, hidden_size, text_dim, num_layers)

    def forward(
        self, sample: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return (self.denoised(sample, t, encoder_hidden_states),)


class OddTransformer2DModel(Base):
    """What it calls its text and that text's width nobody can guess."""

    @register_to_config  # type: ignore[misc]
    def __init__(self, in_channels: int = 4, hidden_size: int = 64, verse_dim: int = 96, num_layers: int = 4):
        super().__init__()
        self.parts(in_channels, hidden_size, verse_dim, num_layers)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, verse: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return (self.denoised(hidden_states, timestep, verse),)


def odd_family() -> FamilyData:
    """What a user writes for it."""
    return FamilyData(
        ("OddTransformer2DModel",),
        arguments={"verse": noise("B T verse_dim")},
    )


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def _cached(cls: type[nn.Module]) -> None:
    """A stack skips its blocks on every second step, quantizes its linears, and comes off again bit for bit."""
    made = small(cls)
    given = [made.call(Sizes(noise=level)) for level in LEVELS]
    with torch.no_grad():
        plain = [made.denoiser(**arguments, return_dict=False)[0] for arguments in given]
        stack = Stack(made.denoiser, steps=len(LEVELS)).quantize("int8-weight", min_features=16)
        with stack.cache("svd", interval=2, warmup=1):
            for arguments in given:
                stack(**arguments, return_dict=False)
            steps = stack.report().steps
        assert [step.kind for step in steps] == ["full", "cached", "full", "cached"]
        assert [step.computed.linears for step in steps] == [1.0, 0.0, 1.0, 0.0]
        for arguments, expected in zip(given, plain, strict=True):
            assert torch.equal(made.denoiser(**arguments, return_dict=False)[0], expected)


def test_a_class_with_usual_names_needs_no_data() -> None:
    assert "PlainTransformer2DModel" not in FAMILIES
    wiring = wiring_of(PlainTransformer2DModel())
    assert wiring.block_lists == ("coarse", "fine") and "blocks" not in wiring.lacks
    assert set(wiring.inputs) == {"sample", "t", "encoder_hidden_states"}
    _cached(PlainTransformer2DModel)


def test_a_class_with_names_of_its_own_needs_twenty_lines_at_most(registry: None) -> None:
    model = OddTransformer2DModel()
    told = wiring_of(model).lacks["blocks"]
    assert "OddTransformer2DModel.forward needs verse, of which nothing is known" in told
    assert "register_family(FamilyData(...))" in told
    assert len(inspect.getsource(odd_family).splitlines()) <= LINES
    register_family(odd_family())
    wiring = wiring_of(model)  # the refusal before is not remembered
    assert wiring.block_lists == ("coarse", "fine") and "blocks" not in wiring.lacks
    assert set(wiring.inputs) == {"hidden_states", "timestep", "verse"}
    _cached(OddTransformer2DModel)


def test_a_family_without_classes_is_refused() -> None:
    with pytest.raises(StackError, match="a family needs the names of its classes"):
        register_family(FamilyData())


@pytest.mark.parametrize("name", [found.name for found in iter_modules(families.__path__) if found.name != "base"])
def test_no_family_of_the_package_needs_more(name: str) -> None:
    """Lines of code of a file, without its imports and texts, for each of its families."""
    module = import_module(f"{families.__name__}.{name}")
    lines = inspect.getsource(module).split('"""')[2].splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("import ", "from "))]
    count = sum(isinstance(entry, FamilyData) for entry in vars(module).values())
    assert len(code) <= LINES * max(1, count)
