"""Runs every entrant on every sample of every task, and writes a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, groupby, islice
from typing import Any, NamedTuple, TypeVar

import attrs

from kvpolicy.budget import plain
from kvpolicy.errors import ResultsError, told
from kvpolicy.evaluation.runs.dialogue import dialogue_prompt
from kvpolicy.evaluation.runs.engine import Engine, Job, Question
from kvpolicy.evaluation.runs.entrant import Entrant
from kvpolicy.evaluation.runs.identity import digest, machine
from kvpolicy.evaluation.runs.prompt import Prompt, PromptFormat
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.runs.stored import StoredResults
from kvpolicy.task import Metric, Sample

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Named:
    """A task's samples and metric, under the task's name."""

    name: str
    samples: Sequence[Sample]
    metric: Metric


class Group(NamedTuple):
    """Questions of one task that have the same context, or contexts that are read together."""

    task: Named
    questions: Sequence[Question]
    together: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Grid:
    """All runs of one engine's model: entrants, and samples written as prompts.

    Samples that follow each other and ask outside of the same context are a group: each entrant
    reads and evicts that context once, and answers every question from a copy of the cache.

    With a `batch` above 1, so many prompts of one length that want a text are read together, and
    once for all entrants; see `kvpolicy.evaluation.runs.batch`.

    `max_new_tokens` is for samples that set none. With `retry` a run that failed before is tried
    again; otherwise its row stays.
    """

    engine: Engine
    format: PromptFormat
    entrants: Sequence[Entrant]
    tasks: Sequence[Named]
    max_new_tokens: int = 64
    retry: bool = False
    batch: int = 1
    identity: Mapping[str, Any] = attrs.field(init=False, repr=False)

    @identity.default
    def _identity(self) -> Mapping[str, Any]:
        return {"model": self.engine.identity, "machine": machine()}

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self.entrants) * sum(len(task.samples) for task in self.tasks)

    def run(
        self,
        results: Results | StoredResults,
        on_row: Callable[[Row, bool], object] = lambda row, ran: None,
    ) -> list[Row]:
        """Run what has no row yet, and return the rows of this grid in order.

        `on_row` hears of each row, and whether it was run now. What a run raises is its row's
        error. Raises ResultsError if the file has rows of the same runs by other code or another
        model, and for a file that cannot be written.
        """
        self._check(results)
        order: list[str] = []
        for row in self.engine.rows(self._jobs(results, order, on_row)):
            on_row(results.add(row), True)
        return [results.rows[key] for key in order]

    def _jobs(
        self,
        results: Results | StoredResults,
        order: list[str],
        on_row: Callable[[Row, bool], object],
    ) -> Iterator[Job]:
        """Yield what is to be run, and add the keys of all rows to `order`."""
        for group in self._groups():
            keys = []
            for entrant in self.entrants:
                starts = [self._start(group.task, *each, entrant) for each in group.questions]
                keys.append([start.key for start in starts])
                results.refresh()
                known = [results.rows.get(start.key) for start in starts]
                missing = [row is None or (self.retry and row.failed) for row in known]
                for row, is_missing in zip(known, missing, strict=True):
                    if row is not None and not is_missing:
                        on_row(row, False)
                if any(missing):
                    yield Job(
                        metric=group.task.metric,
                        entrant=entrant,
                        questions=list(compress(group.questions, missing)),
                        starts=list(compress(starts, missing)),
                        together=group.together,
                    )
            order += chain.from_iterable(zip(*keys, strict=True))

    def _groups(self) -> Iterator[Group]:
        """Yield questions that follow each other, and have one context or are read together."""
        for task in self.tasks:
            asked = ((self._prompt(task, each), each) for each in map(self._limited, task.samples))
            alone = (list(group) for _, group in groupby(asked, _context_of))
            joins = self.batch > 1 and task.metric.asks == "text"
            for shape, groups in groupby(alone, _shape_of if joins else lambda _: None):
                for batch in _batched(groups, self.batch if shape else 1):
                    yield Group(task, list(chain.from_iterable(batch)), together=len(batch) > 1)

    def _limited(self, sample: Sample) -> Sample:
        if sample.max_new_tokens is None:
            return attrs.evolve(sample, max_new_tokens=self.max_new_tokens)
        return sample

    def _prompt(self, task: Named, sample: Sample) -> Prompt | Exception:
        try:
            if task.metric.asks == "dialogue":
                return dialogue_prompt(self.format, sample)
            return self.format.prompt(sample)
        except Exception as error:  # noqa: BLE001 - whatever a chat template raises is a row's error
            return error

    def _start(
        self, task: Named, prompt: Prompt | Exception, sample: Sample, entrant: Entrant
    ) -> Row:
        """Return the row as it is before the run."""
        policy = entrant.described(task.metric)
        ids = digest(prompt.ids) if isinstance(prompt, Prompt) else digest(told(prompt))
        split = [prompt.context.shape[1], prompt.scored] if isinstance(prompt, Prompt) else []
        outside = prompt if isinstance(prompt, Prompt) and prompt.question.shape[1] else None
        asked = attrs.asdict(sample, filter=lambda field, _: field.name not in ("context", "extra"))
        what: dict[str, Any] = {
            "task": task.name,
            "metric": [task.metric.name, task.metric.asks, task.metric.chunk],
            "sample": asked,
            "extra": digest(dict(sample.extra)),
            "prompt": [ids, split],
            "entrant": [entrant.name, plain(entrant.budget), policy],
            "model": self.identity["model"]["digest"],
            "dtype": self.identity["model"]["dtype"],
            "code": entrant.code,
        }
        return Row(
            key=digest(what),
            task=task.name,
            metric=task.metric.name,
            asks=task.metric.asks,
            sample=sample.name,
            question=self.format.place_of(sample),
            entrant=entrant.name,
            budget=entrant.budget,
            policy=policy,
            answers=sample.answers,
            prompt=ids,
            context=digest(outside.context.tolist()) if outside else None,
            run={**self.identity, "code": what["code"]},
        )

    def _check(self, results: Results | StoredResults) -> None:
        """Refuse a file whose rows of these entrants and tasks were made otherwise."""
        codes = {each.title: each.code for each in self.entrants}
        tasks = {task.name for task in self.tasks}
        model = self.identity["model"]
        for row in results:
            title = Entrant(name=row.entrant, budget=row.budget).title
            if row.task not in tasks or title not in codes:
                continue
            theirs = row.run.get("model", {})
            if theirs.get("digest") != model["digest"]:
                raise _other(results, "model", theirs.get("name"), model["name"])
            if row.run.get("code") != codes[title]:
                raise _other(results, "code", row.run.get("code"), codes[title])


def _context_of(question: Question) -> object:
    """Return what equal contexts share; nothing else does, where no question is asked outside."""
    prompt, _ = question
    if isinstance(prompt, Exception) or not prompt.question.shape[1]:
        return object()
    return prompt.context.tolist()


def _shape_of(group: Sequence[Question]) -> tuple[int, int] | None:
    """Return the lengths of a prompt that can be read together with others; None if it cannot."""
    prompt, _ = group[0]
    if len(group) > 1 or isinstance(prompt, Exception):
        return None
    return prompt.context.shape[1], prompt.question.shape[1]


def _batched(groups: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    waiting = iter(groups)
    while batch := tuple(islice(waiting, size)):
        yield batch


def _other(
    results: Results | StoredResults, what: str, theirs: object, ours: object
) -> ResultsError:
    return ResultsError(
        f"{str(results.file)!r} has rows that were made with another {what} ({theirs}) than this "
        f"run has ({ours}), so they cannot be gone on with. Write to another file."
    )
