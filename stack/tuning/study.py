"""The search: an Optuna study whose trials are kept in a database, so that it goes on and can be shared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StackError
from ..core.quiet import quiet
from .figures import Figures
from .space import Space, Stages

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STAGES, FIGURES, EXCESS, REFUSED, HOW = "stages", "figures", "excess", "refused", "how"
PROTOCOL = "protocol"
SEARCHED, CALIBRATED = "searched", "calibrated"
FIRST_TRIALS = 8  # before the sampler learns from what was tried


@dataclass(frozen=True)
class Tried:
    """One candidate that was measured.

    Attributes:
        excess: how far beyond the limits; 0 within them.
        how: "searched" or "calibrated".
    """

    stages: Stages
    figures: Figures
    excess: float
    how: str = SEARCHED


def optuna_or_error() -> Any:
    """The library.

    Raises:
        StackError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise StackError("tuning needs optuna, which is not installed: try pip install 'ditstack[tune]'") from None
    return optuna


class Study:
    """What was tried, in a database.

    Args:
        storage: a file, made where there is none, the URL of a database that Optuna knows, or None for memory.
        name: of the study in it.
        protocol: what figures depend on; trials of another protocol do not mix with these.

    Raises:
        StackError: the database holds another protocol under this name, cannot be opened, or Optuna is missing.
    """

    def __init__(self, storage: str | Path | None, name: str, protocol: Mapping[str, Any], seed: int = 0):
        library = optuna_or_error()
        url = str(storage) if "://" in str(storage) else f"sqlite:///{storage}" if storage is not None else None
        with quiet():
            try:
                self._study: optuna.Study = library.create_study(
                    storage=url, study_name=name, load_if_exists=True, sampler=_sampler(library, seed)
                )
            except Exception as error:  # SQLAlchemy's and the driver's own errors are of many classes
                first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
                raise StackError(f"cannot open the study in {storage}: {first}") from error
        self._library = library
        self._check(dict(json.loads(json.dumps(protocol))), storage)

    def _check(self, protocol: dict[str, Any], storage: str | Path | None) -> None:
        known = self._study.user_attrs.get(PROTOCOL)
        if known is None:
            return self._study.set_user_attr(PROTOCOL, protocol)
        if other := [key for key in protocol if known.get(key) != protocol[key]]:
            what = ", ".join(f"{key} {known.get(key)!r}, now {protocol[key]!r}" for key in other)[:300]
            raise StackError(f"the study in {storage} was made with other {what}: give the same, or another file")

    def begin(self, space: Space) -> None:
        """Put the first candidates in the queue of a new study."""
        if not self._study.trials:
            for chosen in space.first():
                self._study.enqueue_trial(chosen)

    def ask(self, space: Space) -> tuple[optuna.Trial, Stages]:
        """The next candidate."""
        with quiet():
            trial = self._study.ask()
            stages = space.choose(trial)
        trial.set_user_attr(STAGES, stages)
        return trial, stages

    def tell(self, trial: optuna.Trial, figures: Figures, excess: float, cost: float, pruned: bool) -> None:
        """What came of a candidate; pruned: of part of the samples."""
        trial.set_user_attr(FIGURES, asdict(figures))
        trial.set_user_attr(EXCESS, excess)
        trial.report(cost, figures.samples)
        state = self._library.trial.TrialState
        with quiet():
            if pruned:
                self._study.tell(trial, state=state.PRUNED)
            else:
                self._study.tell(trial, cost)

    def refuse(self, trial: optuna.Trial, why: str) -> None:
        """A candidate that does not run."""
        trial.set_user_attr(REFUSED, why)
        with quiet():
            self._study.tell(trial, state=self._library.trial.TrialState.FAIL)

    def leave(self, trial: optuna.Trial) -> None:
        """A candidate that was interrupted: it is not counted, and comes up again."""
        with quiet():
            self._study.tell(trial, state=self._library.trial.TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    def add(self, tried: Tried, cost: float) -> None:
        """A candidate that did not come from the sampler, such as a calibrated one."""
        kept = {STAGES: tried.stages, FIGURES: asdict(tried.figures), EXCESS: tried.excess, HOW: tried.how}
        with quiet():
            self._study.add_trial(self._library.trial.create_trial(value=cost, user_attrs=kept))

    def same(self, stages: Stages) -> Tried | None:
        """What was measured of the same stages before."""
        return next((one for one in self.tried(True) if one.stages == stages), None)

    def tried(self, pruned: bool = False) -> list[Tried]:
        """All that was measured; with `pruned`, on part of the samples as well."""
        state = self._library.trial.TrialState
        states = (state.COMPLETE, state.PRUNED) if pruned else (state.COMPLETE,)
        return [_tried(one) for one in self._study.get_trials(deepcopy=False, states=states)]

    @property
    def refused(self) -> int:
        """How many candidates did not run."""
        return sum(REFUSED in one.user_attrs for one in self._study.get_trials(deepcopy=False))


def _tried(trial: FrozenTrial) -> Tried:
    kept = trial.user_attrs
    return Tried(kept[STAGES], Figures(**kept[FIGURES]), kept[EXCESS], kept.get(HOW, SEARCHED))


def _sampler(library: Any, seed: int) -> Any:
    """Tree-structured Parzen estimators (Bergstra et al. 2011) that keep to the limits (arXiv 2211.14411)."""
    return library.samplers.TPESampler(
        n_startup_trials=FIRST_TRIALS, multivariate=True, group=True, seed=seed,
        constraints_func=lambda trial: (trial.user_attrs.get(EXCESS, 0.0),),
    )  # fmt: skip
