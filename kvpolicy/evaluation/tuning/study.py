"""The search: an Optuna study in a file, which goes on where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from kvpolicy.budget import Budget
from kvpolicy.composition import compose
from kvpolicy.errors import KvpolicyError, MissingPackageError, ResultsError, shown
from kvpolicy.evaluation.tuning.space import beginnings, suggested
from kvpolicy.policy import Policy


@attrs.frozen(kw_only=True)
class Tried:
    """A trial that made a policy, and its error on the prompts that are tuned on."""

    number: int
    error: float
    policy: Policy


def search(
    name: str,
    file: Path | None,
    error: Callable[[Policy], float],
    *,
    budget: Budget,
    trials: int,
    seed: int,
    on_trial: Callable[[int], object] = lambda done: None,
) -> list[Tried]:
    """Try policies until there are `trials`, those of earlier calls included; the best first.

    The first are the recipes that the space has.

    Arguments that make no policy, or one that the model cannot have, count as trials. Raises
    MissingPackageError without Optuna, and ResultsError for a file that is no journal of Optuna.
    """
    optuna = _optuna()
    study = _study(optuna, name, file, seed)
    if not study.trials:
        for values in beginnings(budget):
            study.enqueue_trial(values)

    def objective(trial: Any) -> float:
        arguments = suggested(trial, budget)
        try:
            policy = compose(**arguments)
            found = error(policy)
        except KvpolicyError as refusal:
            trial.set_user_attr("refused", str(refusal))
            raise optuna.TrialPruned from refusal
        trial.set_user_attr("policy", policy.to_dict())
        return found

    for done in range(_finished(study), trials):
        study.optimize(objective, n_trials=1)
        on_trial(done + 1)
    return _tried(study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError(
            f"the search needs Optuna, which cannot be imported: {error}. Install kvpolicy[tune]."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, name: str, file: Path | None, seed: int) -> Any:
    """Open the study of that name, or begin it; its draws depend on how many trials there are."""
    from optuna.storages.journal import JournalFileBackend

    storage = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna says that journals are experimental
            if file is not None:
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
            study = optuna.create_study(
                study_name=name, storage=storage, direction="minimize", load_if_exists=True
            )
            begun = seed + len(study.trials)
            study.sampler = optuna.samplers.TPESampler(seed=begun, n_startup_trials=16)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"cannot use {shown(str(file))} as a study: {error}. Give a file of an earlier "
            "`kvpolicy tune`, or one that does not exist yet."
        ) from error
    return study


def _finished(study: Any) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _tried(study: Any) -> list[Tried]:
    found = [
        Tried(
            number=trial.number,
            error=trial.value,
            policy=Policy.from_dict(trial.user_attrs["policy"]),
        )
        for trial in study.trials
        if trial.value is not None and "policy" in trial.user_attrs
    ]
    return sorted(found, key=lambda each: (each.error, each.number))


def distinct(tried: Sequence[Tried], most: int) -> list[Tried]:
    """Return the first of equal policies, at most so many."""
    found: list[Tried] = []
    for each in tried:
        if len(found) < most and all(each.policy != other.policy for other in found):
            found.append(each)
    return found
