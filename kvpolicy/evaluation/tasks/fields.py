"""The fields of a row of own data: what they hold, and what is wrong with one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never

import attrs

from kvpolicy.errors import DataError, shown, suggest
from kvpolicy.task import Sample

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
PROMPTS = "'prompt', or 'context' and 'question', or 'messages'"
"""What a row gives to read, in messages."""


@attrs.frozen
class DataRow:
    """One row, and the words for where it stands."""

    place: str
    fields: Any

    def sample(self, name: str) -> Sample:
        """Return the sample; `name` is for a row that has none.

        Raises DataError for a field that is unknown, malformed or missing.
        """
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
                f"have {PROMPTS}."
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
