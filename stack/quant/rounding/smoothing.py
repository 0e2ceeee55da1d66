"""Balance between the channels of inputs and weights: outliers of one are moved to the other before both are rounded.

x W^T = (x / s) (W s)^T for any s > 0. Xiao et al. (2022), SmoothQuant, arXiv 2211.10438, eq. 4:
s_j = max|x_j|^a / max|w_j|^(1 - a).
"""

from __future__ import annotations

import torch

from ...core.errors import StackError


def balance(input_peak: torch.Tensor, weight: torch.Tensor, strength: float = 0.5) -> torch.Tensor:
    """What each input channel is divided by, and its weights multiplied with: (K,) float32, powers of two.

    Powers of two keep both divisions exact in any floating dtype: without rounding to integers behind it, balance
    changes no bit of a product (underflow aside), and loses at most a factor of sqrt(2) of the best scale.

    Args:
        input_peak: (K,) largest magnitude of each input channel in calibration.
        weight: (N, K).
        strength: a, in [0, 1]: 0 evens out the weights, 1 the inputs.

    Raises:
        StackError: a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise StackError(f"strength of the balance must be in [0, 1], got {strength}: 0.5 is the usual one")
    peak, own = input_peak.float(), weight.detach().float().abs().amax(0)
    # A channel that never was on, or whose weights are zero, has nothing to balance.
    live = (peak > 0) & (own > 0)
    exponent = strength * peak.clamp_min(1e-30).log2() - (1 - strength) * own.clamp_min(1e-30).log2()
    centre = exponent[live].mean() if bool(live.any()) else exponent.new_zeros(())
    return torch.where(live, torch.exp2((exponent - centre).round().clamp(-24, 24)), torch.ones_like(peak))
