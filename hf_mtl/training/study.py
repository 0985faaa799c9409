"""The account of a search, kept by optuna in a file: what was tried, and what to try next."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_mtl.errors import MissingExtraError, OutputError
from hf_mtl.training.space import Space
from hf_mtl.writing import to_json

if TYPE_CHECKING:
    from optuna import Study, Trial

STUDY_NAME = "study.db"
TRIED = "tried"
"""What optuna keeps our account of a trial under."""


@dataclass(frozen=True)
class TriedArguments:
    """One trial.

    Args:
        number: its number, from 0.
        arguments: the values of the arguments searched.
        value: the metric of its best model on validation; `None` where it failed.
        seconds: seconds of its training.
        problem: why it failed.
    """

    number: int
    arguments: dict[str, Any]
    value: float | None
    seconds: float
    problem: str | None = None


def quiet_optuna() -> None:
    """Keep optuna's reports of trials off the terminal, for callers that report themselves.

    Raises:
        MissingExtraError: optuna is not installed.
    """
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def require_optuna() -> None:
    """Check that optuna can be imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune") from error


class ArgumentStudy:
    """The study of a search, in a file; one trial is in work at a time.

    Args:
        study: the study of optuna.
        seed: seed of the search.
        maximize: whether more is better.
    """

    def __init__(self, study: Study, *, seed: int, maximize: bool) -> None:
        self.study = study
        self.seed = seed
        self.maximize = maximize
        self.trial: Trial | None = None

    @classmethod
    def open(cls, folder: Path, recipe: Mapping[str, Any], *, seed: int, maximize: bool) -> ArgumentStudy:
        """Open the folder's study, or begin one.

        Args:
            folder: folder of the search.
            recipe: what is searched, by which a search of something else is known.
            seed: seed of the search.
            maximize: whether more is better.

        Raises:
            OutputError: the file cannot be used, or is the study of something else.
        """
        import optuna

        path = (folder / STUDY_NAME).absolute()
        # A connection of our own: in a URL some characters of a path would mean something else.
        options = {"creator": lambda: sqlite3.connect(path)}
        try:
            storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=options)
            direction = "maximize" if maximize else "minimize"
            study = optuna.create_study(storage=storage, study_name="hf_mtl", direction=direction, load_if_exists=True)
            known, wanted = study.user_attrs.get("recipe"), to_json(recipe)
        except Exception as error:  # optuna, sqlalchemy and sqlite have errors of their own
            reason = " ".join(str(error).split())[:200]
            raise OutputError(f"it cannot be used ({reason})", where=str(path), mend="give another folder") from error
        if known is not None and known != wanted:
            raise OutputError(
                "the search there was of another recipe",
                where=str(folder),
                mend="go on with the same recipe and arguments, or give another --output-dir",
            )
        study.set_user_attr("recipe", wanted)
        opened = cls(study, seed=seed, maximize=maximize)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            # It was killed: either its end is known, or it is begun again and its run goes on.
            known = trial.user_attrs.get(TRIED)
            opened._end(trial.number, json.loads(known)["value"] if known else None)
        return opened

    def tried(self) -> list[TriedArguments]:
        """Return the trials that came to an end, in their order."""
        import optuna

        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False, states=states)
        ended = [trial.user_attrs[TRIED] for trial in trials if TRIED in trial.user_attrs]
        return [TriedArguments(**json.loads(values)) for values in ended]

    def best(self) -> TriedArguments | None:
        """Return the best trial, the first of equals; `None` where none succeeded."""
        sign = -1.0 if self.maximize else 1.0
        return min(
            (trial for trial in self.tried() if trial.value is not None),
            key=lambda trial: (sign * cast(float, trial.value), trial.number),
            default=None,
        )

    def next(self, space: Space, training: Mapping[str, Any], trials: int) -> tuple[int, dict[str, Any] | None]:
        """Begin a trial, where there are not trials enough.

        Args:
            space: what is searched.
            training: the recipe's training arguments.
            trials: number of trials, those that came to an end included.

        Returns:
            The trial's number from 0, and its values; `None` where there are trials enough.
        """
        import optuna

        number = len(self.tried())
        if number >= trials:
            return number, None
        # A generator for each trial: a search that goes on would else draw again what it drew when it began.
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        self.trial = self.study.ask()
        return number, space.suggest(self.trial, training)

    def tell(self, tried: TriedArguments) -> None:
        """End the trial in work.

        Args:
            tried: what it came to.
        """
        trial = cast("Trial", self.trial)
        trial.set_user_attr(TRIED, json.dumps(asdict(tried)))
        self._end(trial.number, tried.value)

    def _end(self, number: int, value: float | None) -> None:
        import optuna

        self.study.tell(number, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
