"""Learns corrections of estimates: the uncached runs say what each estimate should have been.

The run with the cache is rolled out on the same prompts and seeds. Each form is fitted when the roll-out reaches its
call, with all forms before it applied (TCC's order): what a form sees is then what it will see in use, and it may make
up for what those before it have left. It costs one run with the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..caching.cache import Cache
from ..caching.latent import x0_of
from ..caching.learned import Learned, applied
from ..compat.calibrated_for import conditions
from ..compat.subspace import rank_by_energy
from ..core.errors import StackError
from ..core.installer import Installer
from ..core.passes import Applied
from ..runtime.call import DenoiserCall
from ..runtime.stack_like import StackLike
from ..runtime.step import StepContext
from ..runtime.target import Target
from .observe import Observe, Run, answer_calls
from .trials import Trials

RIDGE = 0.03  # of the mean square of each part
SMALL = 0.3  # of the median size of a target: samples with smaller ones count less than in proportion
ENERGY = 0.99999  # of the estimates, in the subspace that forms of "low-rank" act in


@dataclass
class Estimates:
    """The estimates of uncached runs, in host memory: by guidance branch and step, (B, N, C) each."""

    x0: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)

    def put_on(self, target: Target, install: Installer) -> None:
        """Write down every call's, as it is."""
        try:
            sampler = target.sampler()
        except StackError:  # no estimate can be read off such a sampler's steps
            return

        def visit(call: DenoiserCall, run: Run, context: StepContext) -> Any:
            result = run(call)
            known = self.x0.setdefault(context.branch, {})
            if context.step not in known:
                estimate = sampler().estimates[context.step]
                known[context.step] = x0_of(estimate, call.latent.float(), call.made(result).float()).cpu()
            return result

        answer_calls(target, install, visit)


@dataclass
class RollOut:
    """Takes the place of `Learned` in a corrector: fits a form at every call that asks for one, and applies it.

    Attributes:
        truth: by guidance branch and step, the estimates (B, N, C).
        basis: (C, r); (0, 0) for "l2p".
        ridge: see `fitted`.
        forms: fitted so far.
    """

    kind: str
    truth: Mapping[str, Mapping[int, torch.Tensor]]
    basis: torch.Tensor
    ridge: float
    forms: dict[str, torch.Tensor] = field(default_factory=dict)

    def holds(self, sigmas: Sequence[float]) -> bool:
        """They are what is fitted on."""
        return True

    def correction(self, key: str, parts: Sequence[torch.Tensor], x0: torch.Tensor) -> torch.Tensor | None:
        """See `stack.caching.learned.Corrections.correction`."""
        branch, _, call = key.rsplit("/", 2)
        target = self.truth[branch][int(call)].to(x0) - x0
        if self.kind == "l2p":
            self.forms[key] = fitted(
                [part.unsqueeze(-1).flatten(1, 2) for part in parts],
                target.unsqueeze(-1).flatten(1, 2),
                self.ridge,
            ).flatten()
        else:
            basis = self.basis.to(x0)
            self.forms[key] = fitted([part @ basis for part in parts], target @ basis, self.ridge)
        return applied(self.forms[key], parts, self.basis)


def fitted(parts: Sequence[torch.Tensor], target: torch.Tensor, ridge: float) -> torch.Tensor:
    """W (k r, s) with the least sum of |[parts] W - target|^2 + ridge |W|^2, (B, N, r) and (B, N, s); in float32.

    Samples count by about the inverse of their target's size, so that one that goes astray does not decide alone. The
    ridge draws to W = 0, which is the forecast without corrections; it is relative to the mean square of each part.
    """
    sizes = target.flatten(1).norm(dim=1)
    scale = 1 / (sizes + SMALL * sizes.median()).clamp_min(torch.finfo(target.dtype).tiny)
    rows = (torch.cat(list(parts), -1) * scale[:, None, None]).flatten(0, 1).double()
    wanted = (target * scale[:, None, None]).flatten(0, 1).double()
    gram, width = rows.mT @ rows, parts[0].shape[-1]
    power = gram.diagonal().unflatten(0, (-1, width)).mean(1).repeat_interleave(width)
    power = power.clamp_min(torch.finfo(torch.float32).tiny)  # a part of zeros has no say
    solution: torch.Tensor = torch.linalg.lstsq(gram + ridge * power.diag(), rows.mT @ wanted).solution
    return solution.float()


def subspace(truth: Mapping[str, Mapping[int, torch.Tensor]]) -> torch.Tensor:
    """The leading directions (C, r) of the channels of all estimates, found as SVD-Cache's."""
    gram = sum(
        torch.einsum("bnc,bnd->cd", x0.double(), x0.double()) for calls in truth.values() for x0 in calls.values()
    )
    values, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1)[:, : rank_by_energy(values.flip(0), ENERGY)].float().contiguous()


def learn(
    trials: Trials, cache: Cache, kind: str, truth: Mapping[str, Mapping[int, torch.Tensor]]
) -> tuple[Cache, torch.Tensor]:
    """The cache with corrections of a kind, learnt on the trials' own prompts, and its pictures of these."""
    stack: StackLike = trials.stack
    basis = subspace(truth) if kind == "low-rank" else torch.zeros(0, 0)
    rolled, plain = RollOut(kind, truth, basis.to(trials.device), RIDGE), cache.changed(learned=None)

    def put_on(target: Target, install: Installer) -> Applied:
        controller = plain.controller(target)
        plain.install_site(controller, target, install, learned=rolled)
        install.on_rollback(controller.reset)
        return Applied("learns corrections", reset=controller.reset)

    pictures = trials.run(Observe(put_on))
    facts, under = stack.facts, conditions(stack.plan.facts_after)
    sigmas = tuple(trials.sigmas)
    full = tuple(sorted(plain.policy.schedule_for(trials.steps, sigmas, trials.levels).full_steps(trials.steps)))
    forms = {key: form.cpu() for key, form in rolled.forms.items()}
    learned = Learned(facts.family, facts.blocks, facts.width, kind, full, sigmas, forms, basis.cpu(), made_under=under)
    return plain.changed(learned=learned), pictures
