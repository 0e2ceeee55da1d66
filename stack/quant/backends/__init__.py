"""Who computes a scheme: one file per backend, and `pick`, which chooses one from measured figures."""

from .pick import BACKENDS, pick

__all__ = ["BACKENDS", "pick"]
