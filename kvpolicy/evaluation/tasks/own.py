"""A user's own data as a task: JSON lines, or the same as Python mappings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from kvpolicy.errors import DataError, shown
from kvpolicy.evaluation.tasks.fields import PROMPTS, DataRow
from kvpolicy.task import AGENTS, Metric, Sample

Data: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A file of JSON lines, or mappings of the same fields."""


@attrs.frozen(kw_only=True)
class OwnTask:
    """The samples of a user's data and the metric for them.

    Raises DataError if a sample lacks what the metric needs. A function of the user's own may need
    no answer.
    """

    rows: Sequence[Sample]
    metric: Metric

    def __attrs_post_init__(self) -> None:
        """Look for what is missing before the work begins."""
        for sample in self.rows:
            if not sample.answers and needs_answers(self.metric):
                raise DataError(
                    f"row {sample.name} of the data has neither 'answer' nor 'answers', which "
                    f"metric {self.metric.name!r} needs."
                )
            if self.metric.asks == "dialogue" and not has_agent(sample):
                raise DataError(
                    f"row {sample.name} of the data has no 'messages' with a turn of an agent "
                    f"(role {' or '.join(map(repr, AGENTS))}), which metric {self.metric.name!r} "
                    "needs."
                )
            if self.metric.asks == "choice" and not sample.choices:
                raise DataError(
                    f"row {sample.name} of the data has no 'choices', which metric "
                    f"{self.metric.name!r} needs."
                )

    def samples(self, tokenizer: Any) -> Sequence[Sample]:
        """Return all samples; the tokenizer does not matter."""
        return self.rows


def needs_answers(metric: Metric) -> bool:
    """Whether a metric compares with answers: agreement and dialogues do not, a user's own may."""
    return metric.asks not in ("agreement", "dialogue") and ":" not in metric.name


def has_agent(sample: Sample) -> bool:
    """Whether a conversation has a turn that a model may have written."""
    return any(message["role"] in AGENTS for message in sample.messages)


def default_metric(samples: Sequence[Sample]) -> str:
    """Return the metric for data where a user names none.

    >>> default_metric(read_samples([{"prompt": "Ada"}]))
    'agreement'
    """
    if not any(sample.answers for sample in samples):
        return "agreement"
    return "multiple_choice" if all(sample.choices for sample in samples) else "f1"


def read_samples(data: Data, *, limit: int | None = None) -> tuple[Sample, ...]:
    r"""Return the samples of a file or of mappings, the first `limit` of them.

    A context and a question are put together with a blank line in between.

    >>> [sample] = read_samples([{"context": "Ada is 9.", "question": "How old?", "answer": "9"}])
    >>> sample.context + sample.question, sample.answers
    ('Ada is 9.\n\nHow old?', ('9',))

    Raises DataError if there is no such file or no row in it, and for a row that is malformed, with
    its line and field.
    """
    rows = _lines(Path(data)) if isinstance(data, str | os.PathLike) else _given(data)
    samples: list[Sample] = []
    names: dict[str, str] = {}
    for place, number, row in islice(rows, limit):
        sample = DataRow(place, row).sample(str(number))
        if sample.name in names:
            raise DataError(
                f"{place}: field 'name' is {sample.name!r}, as in {names[sample.name]}. Names tell "
                "samples apart: give each its own, or none to any."
            )
        names[sample.name] = place
        samples.append(sample)
    if not samples:
        where = shown(str(data)) if isinstance(data, str | os.PathLike) else "the data"
        raise DataError(
            f"there is no row in {where}. Give a JSON object a line, with {PROMPTS}, and "
            "'answer' or 'answers'."
        )
    return tuple(samples)


def _lines(file: Path) -> Iterator[tuple[str, int, Any]]:
    try:
        opened = file.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read {shown(str(file))}: {reason}. Give a file of JSON lines."
        ) from error
    with opened as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number}"
            if line.strip():
                yield place, number, _parsed(place, line)


def _parsed(place: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text (byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is no JSON: {error}. Each line is one JSON object, such as "
            '{"prompt": "...", "answer": "..."}.'
        ) from error


def _given(data: Any) -> Iterator[tuple[str, int, Any]]:
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DataError(f"data are a file of JSON lines, or a list of mappings, not {shown(data)}.")
    for number, row in enumerate(data, start=1):
        yield f"row {number} of the data", number, row
