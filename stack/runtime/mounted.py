"""What a stack has on its model: put on, exchanged, taken off, made final."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ..core.errors import StackError
from ..core.installer import Installer
from ..core.plan import Planned
from .hook import hook_denoiser
from .layers import Layers
from .refused import refuse_later
from .target import Target

# The stack on every model. A model's hook keeps its target alive, and the target its stack, while it is applied.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Mounted]] = weakref.WeakKeyDictionary()


class Mounted:
    """The hook and the applied passes of one stack.

    Every operation leaves the model with what was asked for or, if it fails or is interrupted, without any pass; what
    is final stays on. In any case a further `take_off()` ends at the original.

    Attributes:
        target: what the passes act on.
        layers: the passes, in running order.
    """

    def __init__(self, target: Target, layers: Layers):
        self.target, self.layers = target, layers
        self._base = Installer()

    @property
    def on(self) -> bool:
        """Whether anything of the stack is on the model."""
        return bool(self._base)

    def sync(self, stages: Sequence[Planned]) -> None:
        """Put exactly these passes on the model. The lowest ones that already match are left as they are.

        Raises:
            StackError: the model carries another stack, or a final layer would have to go: nothing is changed then.
                Also what a pass raises.
        """
        depth = self.layers.common(stages)
        self.layers.check(depth)
        if mounted_on(self.target.denoiser) not in (None, self):
            raise StackError("this model already carries a stack: Stack.of(model).undo() takes it off")
        try:
            _OWNERS[self.target.denoiser] = weakref.ref(self)
            if not self.on:
                hook_denoiser(self.target, self._base)
                refuse_later(self.target, self.layers, self._base)
            self.layers.shrink(depth)
            self.layers.push(self.target, stages[depth:])
        except BaseException:
            self.take_off()
            raise

    def take_off(self) -> None:
        """Take off whatever is not final; a stack with final layers stays a stack."""
        _to_the_end(self._take_off)

    def _take_off(self) -> None:
        self.layers.shrink(0)
        if not self.layers:
            self._base.rollback()
        self.target.clock.restart()

    def freeze(self) -> None:
        """Make everything up to quantization final, and drop the weights it replaced.

        Raises:
            StackError: see `Layers.freezable`.
        """
        _to_the_end(partial(self.layers.freeze, self.layers.freezable()))


def mounted_on(denoiser: nn.Module) -> Mounted | None:
    """The stack on a model, None where there is none."""
    known = _OWNERS.get(denoiser)
    mounted = known() if known is not None else None
    return mounted if mounted is not None and mounted.on else None


def _to_the_end(action: Callable[[], None]) -> None:
    """Do what may be done twice, and see it through if it is interrupted; the interrupt goes on afterwards."""
    try:
        action()
    except BaseException:
        action()
        raise
