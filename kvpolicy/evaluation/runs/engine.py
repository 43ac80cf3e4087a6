"""Where runs are computed: an engine is given jobs, and yields their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import attrs

from kvpolicy.errors import InvalidValueError, told
from kvpolicy.evaluation.recording.read_once import ReadOnce
from kvpolicy.evaluation.runs.answer import answers
from kvpolicy.evaluation.runs.batch import answered_together
from kvpolicy.evaluation.runs.entrant import Entrant
from kvpolicy.evaluation.runs.identity import model_identity
from kvpolicy.evaluation.runs.oracle import foreseen
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.task import Metric, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy

Question: TypeAlias = tuple[Prompt | Exception, Sample]
"""A sample as tokens, or why there are none, and the sample."""


@attrs.frozen(kw_only=True, eq=False)
class Job:
    """Questions for one entrant; `starts` are their rows as they are before.

    They are on one context, or each on its own of one length if they are read `together`.
    """

    metric: Metric
    entrant: Entrant
    questions: Sequence[Question]
    starts: Sequence[Row]
    together: bool = False


class Engine(AbstractContextManager["Engine"], Protocol):
    """Has one model, and computes jobs while it is entered."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """What `model_identity` says of the model."""
        ...

    def rows(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Yield the rows of all jobs, in any order, each when it is known.

        A job is taken from `jobs` only when it is begun. What a run raises is its row's error.
        """
        ...


@attrs.frozen(kw_only=True, eq=False, slots=False)
class InProcess:
    """Computes one job after the other, in this process."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __enter__(self) -> Self:
        """Do nothing: the model is there."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Do nothing: the model stays."""

    @cached_property
    def _reader(self) -> ReadOnce:
        return ReadOnce(self.model)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What `model_identity` says of the model."""
        return model_identity(self.model)

    def rows(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Yield the rows of one job after the other."""
        for job in jobs:
            yield from self._rows_of(job)

    def _rows_of(self, job: Job) -> Iterator[Row]:
        prompts = [(prompt, each) for prompt, each in job.questions if isinstance(prompt, Prompt)]
        asked, entrant = (self.model, self.tokenizer, prompts, job.metric), job.entrant
        if entrant.is_oracle and entrant.budget is not None:
            found = foreseen(*asked, entrant.budget)
        elif job.together:
            found = self._together(*asked, entrant.policy)
        else:
            found = answers(*asked, entrant.policy)
        for (prompt, _), start in zip(job.questions, job.starts, strict=True):
            if entrant.refusal is not None:
                yield attrs.evolve(start, error=entrant.refusal)
                continue
            outcome = prompt if isinstance(prompt, Exception) else next(found)
            if isinstance(outcome, Exception):
                yield attrs.evolve(start, error=told(outcome))
            else:
                yield attrs.evolve(start, **outcome)

    def _together(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[tuple[Prompt, Sample]],
        metric: Metric,
        policy: Policy | None,
    ) -> Iterator[dict[str, Any] | Exception]:
        """Yield the fields of rows; each question alone where all together fail, for its error."""
        try:
            found = answered_together(self._reader, tokenizer, questions, metric, policy)
        except Exception:  # noqa: BLE001 - whatever a policy raises is the error of its own row
            for question in questions:
                yield from answers(model, tokenizer, [question], metric, policy)
        else:
            yield from found


def engine_of(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    engine: Engine | None,
) -> Engine:
    """Return the engine, or one that computes with a model in this process.

    Raises InvalidValueError unless there is either an engine or a model with its tokenizer.
    """
    if engine is None:
        if model is None or tokenizer is None:
            raise InvalidValueError("give a model and its tokenizer, or an engine that has them.")
        return InProcess(model=model, tokenizer=tokenizer)
    if model is not None or tokenizer is not None:
        raise InvalidValueError(
            "the engine loads the model and the tokenizer itself. Leave them out, or the engine."
        )
    return engine
