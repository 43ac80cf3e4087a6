"""From rows of an evaluation to the smallest budget that keeps a promise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from kvpolicy.budget import Budget, order_of, plain, written
from kvpolicy.errors import InvalidValueError, NotExchangeableWarning, shown, suggest
from kvpolicy.evaluation.calibration.guarantee import check_alpha, exceeding, risk, smallest
from kvpolicy.evaluation.calibration.lengths import doubts
from kvpolicy.evaluation.reports.loading import load
from kvpolicy.evaluation.runs.entrant import FULL
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.policy import Policy
from kvpolicy.task import PERPLEXITIES


@attrs.frozen(kw_only=True)
class Candidate:
    """A budget: on how many samples it or a larger one exceeds the bound, and what that promises.

    `risk` is the largest probability that the next prompt exceeds the bound.
    """

    budget: Budget
    exceeded: int
    risk: float


@attrs.frozen(kw_only=True)
class Calibration:
    """The smallest budget that keeps the promise, and all that were tried.

    `budget` is None if none does: then only the full cache keeps it. `notes` say what was left out,
    and why the guarantee may not hold.
    """

    recipe: str
    task: str
    metric: str
    alpha: float
    bound: float
    samples: int
    budget: Budget | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    described: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    @property
    def policy(self) -> Policy | None:
        """The recipe's policy at the budget; None if there is no such budget."""
        return None if self.described is None else Policy.from_dict(self.described)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON data; `described` is the policy."""
        data = attrs.asdict(self, recurse=False) | {"budget": plain(self.budget)}
        tried = [
            attrs.asdict(each, recurse=False) | {"budget": plain(each.budget)}
            for each in self.candidates
        ]
        return data | {"candidates": tried, "notes": list(self.notes)}

    def __str__(self) -> str:
        """Return a table of the budgets, and what is promised."""
        lines = [
            "| budget | exceeds the bound | risk at most |",
            "|---|---:|---:|",
            *(
                f"| {written(each.budget)} | {each.exceeded} of {self.samples} | {each.risk:.1%} |"
                for each in self.candidates
            ),
            "",
            self._promise(),
            *self.notes,
        ]
        return "\n".join(lines)

    def _promise(self) -> str:
        loss = f"loses more than {self.bound:g} of {self.metric} against the full cache"
        if self.budget is None:
            return (
                f"No budget keeps the promise that the next prompt {loss} with probability at most "
                f"{self.alpha:g}. Evaluate larger budgets, or keep the full cache."
            )
        return (
            f"{self.recipe} at {written(self.budget)}: the next prompt {loss} with probability at "
            f"most {self.alpha:g}, if it is drawn like the {self.samples} prompts of {self.task}."
        )


def calibrate(
    results: str | os.PathLike[str] | Iterable[Row],
    *,
    recipe: str,
    alpha: float,
    bound: float = 0.0,
    task: str | None = None,
    model: str | None = None,
    lengths: Sequence[int] = (),
) -> Calibration:
    """Return the smallest budget whose loss exceeds `bound` with probability at most `alpha`.

    `results` is a file that `kvpolicy eval --output` wrote, or rows of an evaluation. The loss of a
    sample is how much worse its score is than the full cache's; for perplexities in nats per token.
    A run that failed exceeds every bound. `lengths` are those of prompts to come, in tokens.

    The guarantee is that of `kvpolicy.evaluation.calibration.guarantee`: it holds on average over
    calibrations, for one more prompt that is drawn like those of the rows.

    Warns with NotExchangeableWarning if the lengths of prompts say that it may not hold. Raises
    InvalidValueError for an alpha outside (0, 1), too few prompts, an unknown recipe or task, and
    budgets of several kinds, which have no order; ResultsError for a file that cannot be read.
    """
    check_alpha(alpha)
    if isinstance(results, str | os.PathLike):
        loaded = load([results], model=model)
        rows, notes = list(loaded.rows), list(loaded.notes)
    else:
        rows, notes = list(results), []
    rows = _of_task(rows, task)
    full = {row.sample: row for row in rows if row.entrant == FULL}
    own = _of_recipe(rows, recipe)
    budgets = _in_order({row.budget for row in own})
    known = {(row.sample, row.budget): row for row in own}
    samples = [name for name, row in full.items() if row.score is not None]
    if len(samples) < len(full):
        notes.append(
            f"{len(full) - len(samples)} prompts are left out: the full cache failed on them."
        )
    losses = [
        [_loss(known.get((name, budget)), full[name]) for budget in budgets] for name in samples
    ]
    place = smallest(losses, bound=bound, alpha=alpha)
    shaky = list(doubts([full[name] for name in samples], lengths))
    for doubt in shaky:
        warnings.warn(doubt, NotExchangeableWarning, stacklevel=2)
    counts = exceeding(losses, bound)
    budget = None if place is None else budgets[place]
    return Calibration(
        recipe=recipe,
        task=own[0].task,
        metric=own[0].metric,
        alpha=alpha,
        bound=bound,
        samples=len(samples),
        budget=budget,
        candidates=tuple(
            Candidate(budget=each, exceeded=count, risk=risk(count, len(samples)))
            for each, count in zip(budgets, counts, strict=True)
        ),
        notes=(*notes, *shaky),
        described=next((row.policy for row in own if budget and row.budget == budget), None),
    )


def _of_task(rows: Sequence[Row], task: str | None) -> list[Row]:
    names = list(dict.fromkeys(row.task for row in rows))
    if task is None and len(names) > 1:
        raise InvalidValueError(
            f"there are rows of {len(names)} tasks: {', '.join(names)}. Choose one: a guarantee is "
            "for prompts of one kind."
        )
    if task is not None and task not in names:
        raise InvalidValueError(
            f"no rows of the task {shown(task)}.{suggest(task, names)} There are rows of: "
            f"{', '.join(names)}."
        )
    return [row for row in rows if task in (None, row.task)]


def _of_recipe(rows: Sequence[Row], recipe: str) -> list[Row]:
    found = [row for row in rows if row.entrant == recipe and row.budget is not None]
    if not found:
        names = list(dict.fromkeys(row.entrant for row in rows if row.budget is not None))
        raise InvalidValueError(
            f"no rows of the recipe {shown(recipe)}.{suggest(recipe, names)} There are rows of: "
            f"{', '.join(names) or 'none'}."
        )
    return found


def _in_order(budgets: Iterable[Budget | None]) -> list[Budget]:
    """Return the budgets, those that keep less first."""
    found = sorted({each for each in budgets if each is not None}, key=order_of)
    if len({type(each) for each in found}) > 1:
        raise InvalidValueError(
            f"the budgets {', '.join(map(written, found))} are of several kinds, so that it is not "
            "known which keeps less. Calibrate on rows of one kind: positions, shares or errors."
        )
    return found


def _loss(row: Row | None, full: Row) -> float:
    """Return how much worse a run is than the full cache's; NaN if it has no score."""
    if row is None or row.score is None or full.score is None:
        return float("nan")
    better = row.score - full.score
    return better if row.asks in PERPLEXITIES else -better
