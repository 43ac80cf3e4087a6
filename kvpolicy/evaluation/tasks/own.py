"""A user's own data as a task: JSON lines, or the same as Python mappings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Never, TypeAlias

import attrs

from kvpolicy.errors import DataError, shown, suggest
from kvpolicy.task import Metric, Sample

Data: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A file of JSON lines, or mappings of the same fields."""

FIELDS: Mapping[str, str] = {
    "prompt": "a text",
    "context": "a text",
    "question": "a text",
    "cue": "a text",
    "messages": "a list of messages, each with the texts 'role' and 'content'",
    "answer": "a text, or the place of a choice, counted from 0",
    "answers": "a list of one text or more",
    "choices": "a list of two texts or more",
    "max_new_tokens": "a whole number, 1 or more",
    "name": "a text or a number",
    "extra": "an object",
}
"""The fields that a row may have, and what each of them holds."""

_MESSAGE = ("role", "content")
_PROMPTS = "'prompt', or 'context' and 'question', or 'messages'"


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
            if not sample.answers and ":" not in self.metric.name:
                raise DataError(
                    f"row {sample.name} of the data has neither 'answer' nor 'answers', which "
                    f"metric {self.metric.name!r} needs."
                )
            if self.metric.asks == "choice" and not sample.choices:
                raise DataError(
                    f"row {sample.name} of the data has no 'choices', which metric "
                    f"{self.metric.name!r} needs."
                )

    def samples(self, tokenizer: Any) -> Sequence[Sample]:
        """Return all samples; the tokenizer does not matter."""
        return self.rows


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
        sample = _Row(place, row).sample(str(number))
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
            f"there is no row in {where}. Give a JSON object a line, with {_PROMPTS}, and "
            "'answer' or 'answers'."
        )
    return tuple(samples)


def _lines(file: Path) -> Iterator[tuple[str, int, Any]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{file}, line {number}"
                if line.strip():
                    yield place, number, _parsed(place, line)
    except OSError as error:
        raise DataError(
            f"cannot read {shown(str(file))}: {error.strerror or error}. Give a file of JSON lines."
        ) from error


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


@attrs.frozen
class _Row:
    """One row, and the words for where it stands."""

    place: str
    fields: Any

    def sample(self, name: str) -> Sample:
        self._check()
        fields = self.fields
        choices = tuple(fields.get("choices", ()))
        asked = fields.get("question", "")
        return Sample(
            name=str(fields.get("name", name)),
            context=fields.get("prompt", fields.get("context", "")),
            question=f"\n\n{asked}" if asked and fields.get("context") else asked,
            cue=fields.get("cue", ""),
            messages=tuple(fields.get("messages", ())),
            answers=self._answers(choices),
            choices=choices,
            max_new_tokens=fields.get("max_new_tokens"),
            extra=fields.get("extra", {}),
        )

    def _check(self) -> None:
        if not isinstance(self.fields, Mapping):
            raise DataError(
                f"{self.place} is {shown(self.fields)}. It must be an object of fields."
            )
        for field, value in self.fields.items():
            if field not in FIELDS:
                raise DataError(
                    f"{self.place} has the unknown field {shown(field)}.{suggest(field, FIELDS)} "
                    f"Fields: {', '.join(FIELDS)}. What a metric of your own needs goes into "
                    "'extra'."
                )
            if not _CHECKS[field](value):
                self._wrong(field, value)
        given = [name for name in ("prompt", "context", "messages") if name in self.fields]
        if not given and "question" in self.fields:
            given = ["question"]
        if len(given) != 1:
            raise DataError(
                f"{self.place} has {' and '.join(map(repr, given)) or 'nothing to read'}. It must "
                f"have {_PROMPTS}."
            )
        if "question" in self.fields and given[0] in ("prompt", "messages"):
            raise DataError(
                f"{self.place} has 'question' beside {given[0]!r}. 'question' goes with 'context'."
            )
        if "answer" in self.fields and "answers" in self.fields:
            raise DataError(f"{self.place} has 'answer' and 'answers'. Give one of them.")

    def _answers(self, choices: Sequence[str]) -> tuple[str, ...]:
        if "answers" in self.fields:
            field, answers = "answers", tuple(self.fields["answers"])
        elif "answer" in self.fields:
            field, answer = "answer", self.fields["answer"]
            if isinstance(answer, int):
                if not 0 <= answer < len(choices):
                    self._wrong(field, answer, f" There are {len(choices)} choices.")
                answer = choices[answer]
            answers = (answer,)
        else:
            return ()
        if choices and not set(answers) <= set(choices):
            self._wrong(field, self.fields[field], " It is none of the choices.")
        return answers

    def _wrong(self, field: str, value: object, more: str = "") -> Never:
        raise DataError(
            f"{self.place}: field {field!r} is {shown(value)}. It must be {FIELDS[field]}.{more}"
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object, least: int) -> bool:
    return isinstance(value, list | tuple) and len(value) >= least and all(map(_is_text, value))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(
            isinstance(each, Mapping)
            and _is_text(each.get("role"))
            and _is_text(each.get("content"))
            for each in value
        )
    )


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("prompt", "context", "question", "cue"), _is_text),
    "messages": _are_messages,
    "answer": lambda value: _is_text(value) or _is_whole(value, 0),
    "answers": lambda value: _are_texts(value, 1),
    "choices": lambda value: _are_texts(value, 2),
    "max_new_tokens": lambda value: _is_whole(value, 1),
    "name": lambda value: _is_text(value) or _is_whole(value, 0),
    "extra": lambda value: isinstance(value, Mapping),
}
