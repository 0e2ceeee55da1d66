"""How much of a block's work its modules do, as shares of all of its linears that run on every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from ...models.layout import CachedModule
from ...quant.linears.int8 import Int8Linear
from ...quant.linears.two_precisions import TwoPrecisions
from ...quant.linears.weight_only import WeightOnlyLinear


def linear_size(module: nn.Module) -> int:
    """Multiply-accumulates per token of all linears in a module, quantized or not."""
    return sum(linear.in_features * linear.out_features for linear in _linears(module))


def _linears(module: nn.Module) -> Iterator[nn.Linear | Int8Linear | WeightOnlyLinear]:
    if isinstance(module, TwoPrecisions):
        module = module.ends  # of the same shape as the other
    if isinstance(module, nn.Linear | Int8Linear | WeightOnlyLinear):
        yield module
        return
    for child in module.children():
        yield from _linears(child)


def token_work(block: nn.Module, modules: Sequence[CachedModule]) -> dict[str, float]:
    """Path to multiply-accumulates per token of every attention, and of what else a block does token by token.

    A projection that ends attention and MLP is counted with the linears that feed it besides attention. Where every
    stream has weights, and an MLP, of its own, a token passes those of its stream.
    """
    streams = max(1, sum(module.role != "attention" for module in modules))
    attentions = {m.path for m in modules if m.role == "attention"}
    sizes = {path: linear_size(block.get_submodule(path)) for path in attentions}
    for module in modules:
        if module.role != "attention":
            own = [module.path, *(spare for spare in module.spares if spare not in attentions)]
            sizes[module.path] = sum(linear_size(block.get_submodule(path)) for path in own)
    return {path: size / streams for path, size in sizes.items()}
