"""How true an evicted cache stays to the full one: errors of its attention, and answers.

Everyone reads the same prompts. The error is that of `kvpolicy.metrics.token_errors` for the words
of the right answer, whatever the model would have said: the mean over layers and words, for each
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.comparison import batches
from kvpolicy.evaluation.metrics import exact_match
from kvpolicy.evaluation.reader import Question, Reader
from kvpolicy.evaluation.results import Refusal
from kvpolicy.metrics import Recording, record, token_errors

if TYPE_CHECKING:
    from kvpolicy.policy import Policy


class Estimate(NamedTuple):
    """A mean over prompts, and its standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, figures: Sequence[float]) -> Estimate:
        """Average over two prompts or more.

        >>> Estimate.mean([1.0, 3.0])
        Estimate(value=2.0, error=1.0)
        """
        return cls(fmean(figures), stdev(figures) / sqrt(len(figures)))


@attrs.frozen(kw_only=True)
class Entrant:
    """A policy under a name and at a budget, or several whose figures are averaged.

    `policies` may look at what was recorded; only one that is no method, such as an oracle, has a
    use for that. Several are draws of chance.
    """

    name: str
    budget: int
    policies: Callable[[Recording], Sequence[Policy]] = attrs.field(repr=False)

    def refusal(self, error: KvpolicyError) -> Refusal:
        """Say why it cannot take part."""
        return Refusal(name=self.name, budget=self.budget, reason=str(error))


@attrs.frozen(kw_only=True)
class FidelityRow:
    """One entrant: for each prompt its mean error, and whether it was answered right (1) or not.

    Both are means where the entrant has several policies. `every` is that of the policy: how often
    it evicts again while it decodes, None for never.
    """

    name: str
    budget: int
    errors: tuple[float, ...]
    right: tuple[float, ...]
    every: int | None = None

    @property
    def error(self) -> Estimate:
        """The mean error."""
        return Estimate.mean(self.errors)

    @property
    def accuracy(self) -> float:
        """The share of prompts that were answered right, from the first word to the last."""
        return sum(self.right) / len(self.right)

    def minus(self, other: FidelityRow) -> Estimate:
        """Return how much more this row errs than another, prompt by prompt.

        >>> mine, theirs = (
        ...     FidelityRow(name="any", budget=4, errors=errors, right=(1.0, 1.0))
        ...     for errors in ((0.5, 0.375), (0.25, 0.125)))
        >>> mine.minus(theirs)
        Estimate(value=0.25, error=0.0)
        """
        pairs = zip(self.errors, other.errors, strict=True)
        return Estimate.mean([mine - theirs for mine, theirs in pairs])

    def gap_closed(self, *, worst: FidelityRow, best: FidelityRow) -> Estimate:
        """Return (worst - mine) / (worst - best) of the mean errors: 0 at the worst, 1 at the best.

        The standard error is the jackknife's, over prompts, since all three rows share them.

        >>> worst, mine, best = (
        ...     FidelityRow(name=name, budget=4, errors=(error, error), right=(1.0, 1.0))
        ...     for name, error in (("worst", 1.0), ("mine", 0.4), ("best", 0.2)))
        >>> round(mine.gap_closed(worst=worst, best=best).value, 2)
        0.75
        """
        rows = [each.errors for each in (worst, self, best)]
        count = len(self.errors)
        without = [
            _share(*(sum(errors) - errors[prompt] for errors in rows)) for prompt in range(count)
        ]
        middle = fmean(without)
        squares = sum((share - middle) ** 2 for share in without)
        return Estimate(_share(*map(sum, rows)), sqrt((count - 1) / count * squares))


@attrs.frozen(kw_only=True)
class Fidelity:
    """Every entrant at every budget, how the full cache answered, and the refusals.

    `worst` and `best` name the entrants between which the others are placed.
    """

    tokens: int
    words: int
    worst: str
    best: str
    full: tuple[bool, ...]
    rows: tuple[FidelityRow, ...]
    refusals: tuple[Refusal, ...]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, the smallest first."""
        return tuple(sorted({row.budget for row in self.rows}))

    def at(self, budget: int) -> tuple[FidelityRow, ...]:
        """Return the rows of one budget, the truest first."""
        rows = [row for row in self.rows if row.budget == budget]
        return tuple(sorted(rows, key=lambda row: (row.error.value, row.name)))

    def row(self, name: str, budget: int) -> FidelityRow | None:
        """Return one entrant's row, or None if it did not take part."""
        return next((row for row in self.at(budget) if row.name == name), None)

    def gap_closed(self, row: FidelityRow) -> Estimate | None:
        """Return a row's place between worst (0) and best (1); None if there is nothing between."""
        worst, best = (self.row(name, row.budget) for name in (self.worst, self.best))
        if worst is None or best is None or worst.errors == best.errors:
            return None
        return row.gap_closed(worst=worst, best=best)

    def to_dict(self) -> dict[str, Any]:
        """Describe everything as plain JSON data."""
        return {
            "tokens": self.tokens,
            "words": self.words,
            "prompts": len(self.full),
            "full_accuracy": sum(self.full) / len(self.full),
            "rows": [self._described(row) for row in self.rows],
            "refusals": [attrs.asdict(refusal) for refusal in self.refusals],
        }

    def _described(self, row: FidelityRow) -> dict[str, Any]:
        gap = self.gap_closed(row)
        return attrs.asdict(row) | {
            "error": row.error._asdict(),
            "accuracy": row.accuracy,
            "gap_closed": None if gap is None else gap._asdict(),
        }


def fidelity(
    reader: Reader,
    questions: Sequence[Question],
    entrants: Sequence[Entrant],
    refused: Sequence[Refusal] = (),
    *,
    worst: str,
    best: str,
    on_batch: Callable[[Entrant], object] = lambda entrant: None,
) -> Fidelity:
    """Measure everyone on all questions, which are equally long, as are their answers.

    `on_batch` hears who is done with a batch. An entrant whose policy fails at work joins the
    refused. Raises InvalidValueError for fewer than two questions, which have no spread.
    """
    if len(questions) < 2:
        raise InvalidValueError(f"{len(questions)} prompts have no spread: give 2 or more.")
    portions = [_read(reader, batch) for batch in batches(questions)]
    rows, refusals = [], list(refused)
    for entrant in entrants:
        try:
            rows.append(_measured(reader, portions, entrant, on_batch))
        except KvpolicyError as error:
            refusals.append(entrant.refusal(error))
    recordings = [portion.recording for portion in portions]
    return Fidelity(
        tokens=recordings[0].prompt.shape[1],
        words=recordings[0].continuation.shape[1],
        worst=worst,
        best=best,
        full=tuple(right for portion in portions for right in _answered(reader, portion, None)),
        rows=tuple(rows),
        refusals=tuple(refusals),
    )


class _Portion(NamedTuple):
    """A batch of questions, and what the full cache did with their right answers."""

    questions: Sequence[Question]
    recording: Recording


def _read(reader: Reader, questions: Sequence[Question]) -> _Portion:
    answers = [question.answer for question in questions]
    ids = reader.tokenizer(answers, add_special_tokens=False, return_tensors="pt")["input_ids"]
    answer: Int[Tensor, "B F"] = torch.as_tensor(ids).to(reader.model.device)
    return _Portion(questions, record(reader.model, reader.encode(questions), answer))


def _measured(
    reader: Reader,
    portions: Sequence[_Portion],
    entrant: Entrant,
    on_batch: Callable[[Entrant], object],
) -> FidelityRow:
    errors: list[float] = []
    right: list[float] = []
    for portion in portions:
        policies = entrant.policies(portion.recording)
        figures = [_figures(reader, portion, policy) for policy in policies]
        errors += torch.stack([each for each, _ in figures]).mean(0).tolist()
        right += torch.tensor([each for _, each in figures]).double().mean(0).tolist()
        on_batch(entrant)
    return FidelityRow(
        name=entrant.name,
        budget=entrant.budget,
        errors=tuple(errors),
        right=tuple(right),
        every=policies[0].every,
    )


def _figures(
    reader: Reader, portion: _Portion, policy: Policy
) -> tuple[Float[Tensor, " B"], list[bool]]:
    """Return each prompt's mean error over layers and words, and whether it is answered right."""
    errors = token_errors(reader.model, policy, portion.recording).mean((0, 2))
    return errors, _answered(reader, portion, policy)


def _answered(reader: Reader, portion: _Portion, policy: Policy | None) -> list[bool]:
    with opened_cache(reader.model, policy) as cache:
        said = reader.answer(portion.questions, cache)
    return [
        exact_match(answer, question.answer)
        for answer, question in zip(said, portion.questions, strict=True)
    ]


def _share(worst: float, mine: float, best: float) -> float:
    return (worst - mine) / (worst - best)
