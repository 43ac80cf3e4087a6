"""Tunes a policy by reconstruction errors, then by answers, and measures it on held-out prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from kvpolicy.budget import Budget, Within, checked_budget, plain, written
from kvpolicy.composition import recipe
from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.evaluate import evaluate
from kvpolicy.evaluation.measures.catalogue import metric_named
from kvpolicy.evaluation.runs.identity import digest, model_identity
from kvpolicy.evaluation.runs.prompt import PromptFormat, QuestionPlace
from kvpolicy.evaluation.tasks.own import Data, OwnTask, default_metric, read_samples
from kvpolicy.evaluation.tuning.errors import Recorded, recorded
from kvpolicy.evaluation.tuning.space import VERSION
from kvpolicy.evaluation.tuning.study import Tried, distinct, search
from kvpolicy.policy import Policy
from kvpolicy.task import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TUNED = "tuned"
FINALISTS = 5
"""How many of the policies with the smallest errors are compared by their answers."""


@attrs.frozen(kw_only=True)
class Line:
    """A policy's error and score, on the prompts that were tuned on, and on those held out."""

    name: str
    error: float
    score: float
    held_out_error: float
    held_out_score: float


@attrs.frozen(kw_only=True)
class Tuned:
    """The best policy, beside recipes at the same bytes; printing it gives a table."""

    policy: Policy
    budget: Budget
    metric: str
    samples: int
    held_out: int
    trials: int
    lines: tuple[Line, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        data = attrs.asdict(self, recurse=False) | {"budget": plain(self.budget)}
        return data | {
            "policy": self.policy.to_dict(),
            "lines": [attrs.asdict(line) for line in self.lines],
        }

    def __str__(self) -> str:
        """Return a table in Markdown, and what its columns are."""
        columns = ("error", self.metric, "held-out error", f"held-out {self.metric}")
        head = f"| at {written(self.budget)} | {' | '.join(columns)} |"
        rows = [
            f"| {line.name} | {line.error:.4f} | {line.score:.3f} | {line.held_out_error:.4f} "
            f"| {line.held_out_score:.3f} |"
            for line in self.lines
        ]
        note = (
            f"{self.trials} trials on {self.samples} prompts; {self.held_out} others were held "
            "out. The error is the reconstruction error, the mean over layers and the tokens that "
            "follow."
        )
        return "\n".join([head, "|---|---:|---:|---:|---:|", *rows, "", note])


class _Half(NamedTuple):
    """Some of the samples: as a task, and with what follows them."""

    task: OwnTask
    recorded: Recorded


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: Data,
    budget: Budget,
    trials: int = 60,
    study: str | os.PathLike[str] | None = None,
    recipes: Sequence[str] = ("restkv", "snapkv", "random"),
    metric: str | None = None,
    question: QuestionPlace = "inside",
    held_out: float = 0.5,
    max_new_tokens: int = 32,
    seed: int = 0,
    on_trial: Callable[[int], object] = lambda done: None,
) -> Tuned:
    """Return the policy that serves `data` best at `budget`, positions or a share.

    The samples are shuffled, and the share `held_out` of them put aside. Policies are searched by
    their reconstruction error on the others (Optuna's TPE). The `FINALISTS` best are compared by
    their answers, of equal scores the smaller error wins. The winner and `recipes` at the same
    budget are measured on what was put aside.

    `study` is a file in which the search goes on. All candidates hold the same bytes: a budget is a
    bound on positions, and rows are kept as they are.

    Raises DataError for fewer than 4 samples, InvalidValueError for an error target,
    MissingPackageError without Optuna, and ResultsError for a file that is no study.
    """
    budget = _checked(budget, trials, held_out)
    samples = read_samples(data)
    judged = metric_named(metric or default_metric(samples))
    form = PromptFormat(tokenizer=tokenizer, question=question)
    halves = [
        _Half(
            OwnTask(rows=part, metric=judged),
            recorded(model, tokenizer, form, part, max_new_tokens),
        )
        for part in _halves(samples, held_out, seed)
    ]
    what = [attrs.asdict(each) for each in samples]
    facts = [
        model_identity(model)["digest"],
        what,
        plain(budget),
        question,
        held_out,
        seed,
        VERSION,
    ]
    tried = search(
        digest(facts),
        None if study is None else Path(study),
        halves[0].recorded.error,
        budget=budget,
        trials=trials,
        seed=seed,
        on_trial=on_trial,
    )
    if not tried:
        raise InvalidValueError(
            f"none of {trials} trials made a policy at {written(budget)}. Give more trials, or a "
            "budget that holds more positions."
        )
    asked = {"question": question, "max_new_tokens": max_new_tokens}
    best = _best(model, tokenizer, distinct(tried, FINALISTS), halves[0], asked)
    entrants = {TUNED: best.policy} | {name: recipe(name, budget=budget) for name in recipes}
    return Tuned(
        policy=best.policy,
        budget=budget,
        metric=judged.name,
        samples=len(halves[0].task.rows),
        held_out=len(halves[1].task.rows),
        trials=trials,
        lines=tuple(_lines(model, tokenizer, entrants, halves, asked)),
    )


def _checked(budget: Budget, trials: int, held_out: float) -> Budget:
    known = checked_budget(budget)
    if isinstance(known, Within):
        raise InvalidValueError(
            f"policies are compared at equal bytes, but {written(known)} is an error target: its "
            "bytes follow from the prompt. Give positions or a share."
        )
    if type(trials) is not int or trials < 1:
        raise InvalidValueError(f"trials must be 1 or more, but are {trials}.")
    if not 0 < held_out < 1:
        raise InvalidValueError(f"held_out is a share above 0 and below 1, but is {held_out}.")
    return known


def _halves(
    samples: Sequence[Sample], held_out: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Shuffle the samples, and put the share `held_out` aside; 2 at least, and 2 stay."""
    if len(samples) < 4:
        raise DataError(
            f"there are {len(samples)} samples: give 4 or more, 2 to tune on and 2 to hold out."
        )
    mixed = Random(seed).sample(samples, len(samples))
    count = min(len(samples) - 2, max(2, round(held_out * len(samples))))
    return mixed[count:], mixed[:count]


def _best(
    model: Any, tokenizer: Any, finalists: Sequence[Tried], half: _Half, asked: Mapping[str, Any]
) -> Tried:
    named = {str(each.number): each.policy for each in finalists}
    scores = _scores(model, tokenizer, named, half.task, asked)
    return max(finalists, key=lambda each: (scores[str(each.number)], -each.error))


def _scores(
    model: Any,
    tokenizer: Any,
    entrants: Mapping[str, Policy],
    task: OwnTask,
    asked: Mapping[str, Any],
) -> dict[str, float]:
    """Return each policy's score; a perplexity is negated, so that more is better."""
    found = evaluate(model, tokenizer, recipes=entrants, tasks=[task], references=False, **asked)
    scores = {}
    for cell in found.cells:
        value = float("-inf") if cell.estimate is None else cell.estimate.value
        scores[cell.entrant] = value if cell.larger_is_better else -value
    return scores


def _lines(
    model: Any,
    tokenizer: Any,
    entrants: Mapping[str, Policy],
    halves: Sequence[_Half],
    asked: Mapping[str, Any],
) -> list[Line]:
    errors = [
        {name: half.recorded.error(policy) for name, policy in entrants.items()} for half in halves
    ]
    scores = [_scores(model, tokenizer, entrants, half.task, asked) for half in halves]
    return [
        Line(
            name=name,
            error=errors[0][name],
            score=scores[0][name],
            held_out_error=errors[1][name],
            held_out_score=scores[1][name],
        )
        for name in entrants
    ]
