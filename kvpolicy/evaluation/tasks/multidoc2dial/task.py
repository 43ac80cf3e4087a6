"""MultiDoc2Dial: the perplexity of an agent's turns, with one cache over the whole dialogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import attrs

from kvpolicy.errors import DataError, shown
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.files import field_of, json_of
from kvpolicy.options import a_path, boolean, count, one_of
from kvpolicy.task import Metric, Sample

SPLITS = ("train", "validation", "test")
_ORIGIN = (
    "It is in multidoc2dial.zip (6.9 MB) of doc2dial.github.io: unpack that, and give its folder "
    "multidoc2dial."
)
_ROLES = {"user": "user", "agent": "assistant"}


@attrs.frozen(kw_only=True)
class MultiDoc2DialTask:
    """Dialogues of MultiDoc2Dial (Feng et al., 2021), in the order of the file.

    With `documents`, the documents that a dialogue refers to stand in front of it. Turns of one
    speaker that follow each other become one turn.
    """

    folder: str = attrs.field(validator=a_path)
    split: str = attrs.field(default="validation", validator=one_of(*SPLITS))
    documents: bool = attrs.field(default=False, validator=boolean)
    num_samples: int = attrs.field(default=100, validator=count)

    @property
    def metric(self) -> Metric:
        """The perplexity of the agent's turns."""
        return METRICS["dialogue_perplexity"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the dialogues in which the agent speaks.

        Raises DataError if a file cannot be read, or is not as MultiDoc2Dial's files are.
        """
        texts = self._texts() if self.documents else {}
        file = Path(self.folder) / f"multidoc2dial_dial_{self.split}.json"
        yield from islice(_samples(file, texts), self.num_samples)

    def _texts(self) -> dict[str, str]:
        file = Path(self.folder) / "multidoc2dial_doc.json"
        data = _field(str(file), json_of(file, _ORIGIN), "doc_data", dict)
        return {
            name: _field(f"{file}, document {name}", document, "doc_text", str)
            for domain in data
            for name, document in _field(f"{file}, doc_data", data, domain, dict).items()
        }


def _samples(file: Path, texts: Mapping[str, str]) -> Iterator[Sample]:
    data = _field(str(file), json_of(file, _ORIGIN), "dial_data", dict)
    for domain in data:
        for number, dialogue in enumerate(_field(f"{file}, dial_data", data, domain, list)):
            place = f"{file}, dialogue {number + 1} of {domain}"
            turns = _field(place, dialogue, "turns", list)
            messages = tuple(_messages(place, turns))
            if any(message["role"] == "assistant" for message in messages):
                yield Sample(
                    name=_field(place, dialogue, "dial_id", str),
                    context="\n\n".join(_documents(place, turns, texts)),
                    messages=messages,
                )


def _messages(place: str, turns: Sequence[Any]) -> Iterator[dict[str, str]]:
    said = [
        (_field(place, turn, "role", str), _field(place, turn, "utterance", str).strip())
        for turn in turns
    ]
    for role, group in groupby(said, lambda each: each[0]):
        if role not in _ROLES:
            raise DataError(f"{place} has the role {shown(role)}. Roles: {', '.join(_ROLES)}.")
        yield {"role": _ROLES[role], "content": " ".join(text for _, text in group)}


def _documents(place: str, turns: Sequence[Any], texts: Mapping[str, str]) -> list[str]:
    """Return the texts that a dialogue refers to, in the order of the references, each once."""
    if not texts:
        return []
    references = [each for turn in turns for each in _field(place, turn, "references", list)]
    names = dict.fromkeys(_field(place, each, "doc_id", str) for each in references)
    if unknown := [name for name in names if name not in texts]:
        raise DataError(f"{place} refers to {shown(unknown[0])}, which is not in doc_data.")
    return [texts[name].strip() for name in names]


def _field(place: str, data: Any, field: str, kind: type) -> Any:
    if not isinstance(data, dict):
        raise DataError(f"{place} is {shown(data)}. It must be an object. {_ORIGIN}")
    return field_of(place, data, field, kind)
