"""How true an evicted cache stays to the full one: errors of its attention, and answers.

Everyone reads the same prompts. The error is that of `token_errors` (see
`kvpolicy.evaluation.measures.reconstruction`) for the words of the right answer, whatever the model
would have said: the mean over layers and words, for each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.fidelity.rows import Fidelity, FidelityRow
from kvpolicy.evaluation.measures.reconstruction import Recording, record, token_errors
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.needle.reader import Question, Reader, batches
from kvpolicy.evaluation.reports.comparison import Refusal

if TYPE_CHECKING:
    from kvpolicy.policy import Policy


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
