"""The cells of a study as trials in Optuna's storage: what became of each, kept through a kill.

The storage is SQLite (STUDY/study.db), whose every change is whole or absent; Optuna's file journal can end in half a line.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from vgg_ddp.errors import UserError
from vgg_ddp.study.definition import Cell, Definition, require_optuna

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
}
Ending = Literal["waiting", "running", "done", "given up", "diverged", "failed"]


@dataclass(frozen=True)
class Found:
    """What became of a cell: its objective if it is done, and in words why it failed."""

    cell: Cell
    ending: Ending
    value: float | None = None
    why: str = ""


class Trials:
    """The trials of one study."""

    def __init__(self, folder: Path, definition: Definition) -> None:
        """Open or make the storage in `folder`.

        Raises:
            UserError: Optuna is not installed, the pruner is unknown, or the storage cannot be read or created.
        """
        require_optuna()
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._running = optuna.trial.TrialState.RUNNING
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{(folder / 'study.db').absolute()}",
                study_name="study",
                sampler=optuna.samplers.RandomSampler(),  # draws nothing: every cell is fixed before it is asked for
                pruner=_pruner(definition),
                direction="maximize" if definition.higher_is_better else "minimize",
                load_if_exists=True,
            )
        except (
            SQLAlchemyError,
            optuna.exceptions.OptunaError,
            RuntimeError,
        ) as error:  # the last: a file of another Optuna version
            raise UserError(
                f"{folder / 'study.db'} cannot be used: {error}; check it, or choose another --out"
            ) from None

    def found(self, cells: list[Cell]) -> list[Found]:
        """What became of each of `cells`, by its last trial."""
        last = {trial.user_attrs["cell"]: trial for trial in self._study.get_trials(deepcopy=False)}
        return [_found(cell, last.get(cell.name)) for cell in cells]

    def begin(self, cell: Cell) -> Attempt:
        """A trial of a cell: the one that a stop or a kill left running, or a new one."""
        for trial in self._study.get_trials(deepcopy=False, states=(self._running,)):
            if trial.user_attrs["cell"] == cell.name:
                return Attempt(self._study, trial._trial_id, trial.number)
        from optuna.distributions import IntDistribution
        from optuna.trial import TrialState, create_trial

        # In one transaction, so that no trial is without its cell's name.
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={"seed": cell.seed},
                distributions={"seed": IntDistribution(0, 2**32 - 1)},
                user_attrs={**cell.values, "cell": cell.name},
            )
        )
        trial = self._study.get_trials(deepcopy=False)[-1]
        return Attempt(self._study, trial._trial_id, trial.number)


class Attempt:
    """One trial that runs."""

    def __init__(self, study: optuna.Study, identity: int, number: int) -> None:
        import optuna

        self._study, self._number = study, number
        self._trial = optuna.trial.Trial(study, identity)
        self._reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    def is_hopeless(self, epoch: int, value: float) -> bool:
        """Whether the pruner gives the cell up, after a validation at the end of `epoch` that gave this objective."""
        if epoch not in self._reported:
            self._reported.add(epoch)
            self._trial.report(value, epoch)
        return self._trial.should_prune()

    def done(self, value: float) -> None:
        """The cell came to its end."""
        self._study.tell(self._number, value)

    def given_up(self) -> None:
        """It was stopped as hopeless."""
        import optuna

        self._study.tell(self._number, state=optuna.trial.TrialState.PRUNED)

    def failed(self, ending: Ending, why: str) -> None:
        """It has no objective."""
        import optuna

        self._trial.set_user_attr("ending", ending)
        self._trial.set_user_attr("why", why)
        self._study.tell(self._number, state=optuna.trial.TrialState.FAIL)


def _found(cell: Cell, trial: FrozenTrial | None) -> Found:
    if trial is None:
        return Found(cell, "waiting")
    state = trial.state.name
    if state == "FAIL":
        return Found(cell, trial.user_attrs.get("ending", "failed"), why=trial.user_attrs.get("why", ""))
    endings: dict[str, Ending] = {"RUNNING": "running", "COMPLETE": "done", "PRUNED": "given up"}
    return Found(cell, endings[state], trial.value if state == "COMPLETE" else None)


def _pruner(definition: Definition) -> Any:
    """Optuna's pruner that the study's file names.

    Raises:
        UserError: there is none of that name, or it has no such argument.
    """
    import optuna

    if not definition.pruner:
        return optuna.pruners.NopPruner()
    name, arguments = definition.pruner.get("name"), {k: v for k, v in definition.pruner.items() if k != "name"}
    if not isinstance(name, str) or name not in PRUNERS:
        raise UserError(f"pruner: there is no {name!r}; the names are {', '.join(PRUNERS)}")
    kind = getattr(optuna.pruners, PRUNERS[name])
    try:
        return kind(**{key: yaml.safe_load(value) for key, value in arguments.items()})
    except (TypeError, ValueError, AttributeError) as error:  # the last of a value that is no text
        known = ", ".join(inspect.signature(kind).parameters)
        raise UserError(f"pruner: {name}: {error}; its arguments are {known}") from None
