"""Compares recipes at several budgets with the full cache, all on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation.caches import opened_cache, shares_held
from kvpolicy.evaluation.contenders import Contender
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.reader import Question, Reader
from kvpolicy.evaluation.results import Comparison, Refusal, Row
from kvpolicy.evaluation.timing import decode_milliseconds
from kvpolicy.huggingface.report import report_of

BATCH = 8
"""How many questions are answered at once."""


def batches(questions: Sequence[Question]) -> list[Sequence[Question]]:
    """Cut the questions into the portions in which they are asked."""
    return [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]


def compare(
    reader: Reader,
    questions: Sequence[Question],
    accepted: Sequence[Contender],
    refused: Sequence[Refusal],
    on_batch: Callable[[Contender], object],
) -> Comparison:
    """Ask everyone all questions, which are equally long; `on_batch` hears who answered a batch.

    `accepted` and `refused` come from `contenders`; the full cache is the first. A contender whose
    policy fails at work joins the refused.
    """
    at_work, rows, refusals = [], [], list(refused)
    for contender in accepted:
        try:
            rows.append(_questioned(reader, questions, contender, on_batch))
        except KvpolicyError as error:
            refusals.append(contender.refusal(error))
        else:
            at_work.append(contender)
    prompt = reader.encode(questions[:1])
    times = decode_milliseconds(reader.model, prompt, [each.policy for each in at_work])
    full, *others = map(_timed, rows, times)
    return Comparison(
        tokens=prompt.shape[1], full=full, rows=tuple(others), refusals=tuple(refusals)
    )


def _questioned(
    reader: Reader,
    questions: Sequence[Question],
    contender: Contender,
    on_batch: Callable[[Contender], object],
) -> Row:
    right: list[bool] = []
    positions, nbytes = 0.0, 0
    for batch in batches(questions):
        with opened_cache(reader.model, contender.policy) as cache:
            said = reader.answer(batch, cache)
            positions += float(shares_held(cache, reader.encode(batch)).sum())
            nbytes += report_of(cache).nbytes
        right += map(exact_match, said, [question.answer for question in batch])
        on_batch(contender)
    return Row(
        name=contender.name,
        budget=contender.budget,
        right=tuple(right),
        positions=positions / len(questions),
        nbytes=round(nbytes / len(questions)),
        protected=contender.policy.protected if contender.policy else 0,
    )


def _timed(row: Row, milliseconds: float) -> Row:
    return attrs.evolve(row, milliseconds=milliseconds)
