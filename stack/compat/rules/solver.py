"""Clashes of the solver's steps with samplers, adapters and loops of one's own."""

from __future__ import annotations

from ...core.rule import Evidence, Rule

SOLVER_UNDER_ADAPTER = Rule(
    "solver-under-adapter",
    "a solver's steps on the list of a distilled adapter",
    "An adapter is trained for each step of its own short list. With some of them left out its steps are longer than "
    "any that it was trained for.",
    (
        Evidence(
            "5 of 8 steps of `shapes-flux-8` 50.8 dB against the adapter on all 8, 4 of 8 45.0; a cache at 5 of 8 50.2",
            "[benchmarks](benchmarks.md#solver), 8 prompts",
        ),
    ),
    "Noted in the plan: a cache on the adapter's own steps gives as much.",
    "plan",
    ("distill", "adapter", "solver"),
)
SOLVER_SAMPLER = Rule(
    "solver-sampler",
    "a solver in place of a sampler that adds noise or clips",
    "The solver comes close to the picture that the scheduler makes on all its steps. One that adds noise of its own "
    "has no such picture, and one that clips its estimates is no weighted sum of them.",
    (
        Evidence(
            "every latent is a sum of estimates to 1e-6 for 57 settings of 18 schedulers of diffusers; for 17 settings "
            "of those that add noise or clip there is no such sum",
            "`tests/models/test_sampler.py`",
        ),
    ),
    "Refused, by the scheduler's name, with deterministic ones to try.",
    "plan",
    ("solver",),
)
SOLVER_NEEDS_PIPELINE = Rule(
    "solver-needs-pipeline",
    "a solver on a bare denoiser",
    "The solver replaces a pipeline's scheduler. A sampling loop of your own uses its own scheduler.",
    (Evidence("a loop of 50 calls would still be one of 50 calls", "by construction"),),
    "Refused: build the stack on the pipeline.",
    "plan",
    ("solver",),
)

SOLVER = (SOLVER_UNDER_ADAPTER, SOLVER_SAMPLER, SOLVER_NEEDS_PIPELINE)
