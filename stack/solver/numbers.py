"""A second-order solver on some steps of a sampler's own ladder, as sums of estimates of the clean sample. Pure.

A deterministic sampler makes every latent a weighted sum of its estimates of x0 so far (`LinearSampler`). The solver
asks the denoiser at some of its steps, its places, and puts a line through the estimates there in place of those at
the steps between: extended beyond the last place at first, and drawn between both places once the next one is known.
So its step is the exponential integrator of a linear x0 (data prediction, as in DPM-Solver++, Lu et al. 2022,
arXiv:2211.01095, with the corrector of UniPC, Zhao et al. 2023, arXiv:2302.04867), but summed over the sampler's own
steps instead of integrated: what it comes close to is the picture of that sampler on its own steps, with that
sampler's own error, and with a place at every step it is that sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.sampler import LinearSampler

RECENT = 3  # estimates that a step's fitted weights count, the newest last
Corrections = Sequence[Sequence[float]]
"""For each step what is added to its factor on the latent, and to those on its `RECENT` last estimates, in order."""


def placed_form(
    own: LinearSampler, places: Sequence[int], x: Sequence[float], order: int = 2, after: int = 2
) -> LinearSampler:
    """The solver's run as numbers, in calls of its own.

    Args:
        own: the sampler on its whole ladder of N calls.
        places: calls at which the denoiser runs, rising from 0.
        x: coordinate of each of the N calls, in which x0 is taken for a polynomial.
        order: 1 holds the last estimate, 2 extends the line through the last two.
        after: points of the polynomial that replaces the forecasts once the next estimate is there; 0 for none.
    """
    calls, count = len(own.estimates), len(places)
    coordinates = np.asarray(x, dtype=np.float64)
    weights = np.zeros((count + 1, count))
    ends = [*places, calls]
    settled = np.zeros((calls, count))  # share of each estimate in x0 at each call of the ladder, once it is settled
    for k in range(count):
        gap = slice(places[k], ends[k + 1])
        if k and after:
            known = range(max(0, k + 1 - after), k + 1)
            before = slice(places[k - 1], places[k])
            settled[before] = _polynomial(coordinates, before, places, known)
        shares = settled.copy()
        shares[gap] = _polynomial(coordinates, gap, places, range(max(0, k + 1 - order), k + 1))
        if not after:
            settled[gap] = shares[gap]
        weights[k + 1] = own.weights[ends[k + 1]] @ shares
    return LinearSampler(tuple(own.estimates[at] for at in places), weights, own.noise[ends])


def step_weights(form: LinearSampler, at: int) -> tuple[float, np.ndarray]:
    """A step from call `at`: the factor on its latent, and those on all estimates (N,)."""
    ratio = float(form.noise[at + 1] / form.noise[at])
    return ratio, form.weights[at + 1] - ratio * form.weights[at]


def recent(at: int) -> range:
    """The estimates that the corrections of a step from call `at` are of."""
    return range(max(0, at + 1 - RECENT), at + 1)


def corrected(form: LinearSampler, by: Corrections) -> LinearSampler:
    """The run with corrections added to the weights of its steps: a non-stationary solver (Shaul et al. 2024,
    arXiv:2403.01329), whose weights obey no order and are fitted to finished pictures."""
    weights, noise = np.zeros_like(form.weights), np.array(form.noise)
    for at, (more, *shares) in enumerate(by):
        ratio, step = step_weights(form, at)
        step[recent(at)] += shares
        noise[at + 1] = (ratio + more) * noise[at]
        weights[at + 1] = (ratio + more) * weights[at] + step
    return LinearSampler(form.estimates, weights, noise)


def _polynomial(x: np.ndarray, calls: slice, places: Sequence[int], known: Sequence[int]) -> np.ndarray:
    """Weights (calls, places) of the polynomial through the estimates of some places: Lagrange's."""
    weights, at = np.zeros((calls.stop - calls.start, len(places))), x[list(places)]
    for i in known:
        others = [j for j in known if j != i]
        weights[:, i] = np.prod([(x[calls] - at[j]) / (at[i] - at[j]) for j in others], axis=0)
    return weights
