"""A task of InfiniteBench, read from its file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError, shown
from kvpolicy.evaluation.tasks.files import field_of, lines_of
from kvpolicy.evaluation.tasks.hub import HubFile
from kvpolicy.evaluation.tasks.infinitebench.metrics import METRICS, metric_of
from kvpolicy.options import a_path, one_of
from kvpolicy.task import Metric, Sample

TASKS = tuple(METRICS)
_SIZES = {
    "passkey": "277 MB",
    "number_string": "277 MB",
    "kv_retrieval": "105 MB",
    "longbook_sum_eng": "79 MB",
    "longbook_choice_eng": "186 MB",
    "longbook_qa_eng": "298 MB",
    "longbook_qa_chn": "863 MB",
    "longdialogue_qa_eng": "84 MB",
    "math_find": "41 MB",
    "math_calc": "6 MB",
    "code_run": "83 MB",
    "code_debug": "200 MB",
}
_CHOICES = ("code_debug", "longbook_choice_eng")
_PART = "{context}"


@attrs.frozen(kw_only=True)
class InfiniteBenchTask:
    """The samples of `folder`/`task`.jsonl, in the prompts that ReST-KV's authors use.

    Without a folder the file is downloaded from the hub, once.

    The prompts are those for base models, without a chat template. The presets differ in how many
    tokens are decoded: `official`, or `restkv` as its authors do.
    """

    task: str = attrs.field(validator=one_of(*TASKS))
    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    preset: str = attrs.field(default="official", validator=one_of("official", "restkv"))

    @property
    def metric(self) -> Metric:
        """InfiniteBench's own."""
        return metric_of(self.task)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the samples of the file.

        Raises DataError if the file cannot be read, or for a line that is none of InfiniteBench's.
        """
        hub = HubFile(
            repository="xinrongzhang2022/InfiniteBench",
            name=f"{self.task}.jsonl",
            size=_SIZES[self.task],
        )
        file = hub.fetched() if self.folder is None else Path(self.folder) / hub.name
        for number, (place, data) in enumerate(lines_of(file, hub.origin)):
            name = f"{number} {data.get('id', '')}".strip()
            yield attrs.evolve(sample_of(self.task, self.preset, place, data), name=name)


def sample_of(task: str, preset: str, place: str, data: dict[str, Any]) -> Sample:
    """Return the sample of a line of a task's file.

    `place` tells where the line stands. Raises DataError for a line of another format.
    """
    prompt = _prompts()[task]
    before, _, behind = prompt["prompt"].partition(_PART)
    fields = _fields(task, place, data)
    context = field_of(place, data, "context", str)
    return Sample(
        name=place,
        context=_filled(before, fields) + context,
        question=_filled(behind, fields),
        answers=labels(task, place, data),
        max_new_tokens=new_tokens_of(task, preset),
        chat=False,
    )


def new_tokens_of(task: str, preset: str) -> int:
    """Return how many tokens are decoded for an answer.

    >>> new_tokens_of("passkey", "official"), new_tokens_of("passkey", "restkv")
    (6, 15)
    """
    tokens: int = _prompts()[task]["new_tokens"][preset]
    return tokens


def labels(task: str, place: str, data: dict[str, Any]) -> list[str]:
    """Return the right answers as texts; of a choice, the option and its letter.

    The numbers of `math_calc` are one answer.

    Raises DataError if there is none.
    """
    answer = data.get("answer")
    found = answer if isinstance(answer, list) else [answer]
    if task == "math_calc" and found and isinstance(found[0], list):
        found = found[0]
    if not found or not all(isinstance(each, str | int | float) for each in found):
        raise DataError(f"{place}: field 'answer' is {shown(answer)}. It must hold answers.")
    texts = [str(each) for each in found]
    if task == "math_calc":
        return [", ".join(texts)]
    if task in _CHOICES and len(texts) == 1:
        options = field_of(place, data, "options", list)
        if texts[0] not in options[:4]:
            raise DataError(f"{place}: the answer {shown(texts[0])} is none of the options.")
        texts.append("ABCD"[options.index(texts[0])])
    return texts


def _fields(task: str, place: str, data: dict[str, Any]) -> dict[str, str]:
    asked = field_of(place, data, "input", str)
    fields = {"input": asked, "question": asked}
    if task in _CHOICES:
        options = field_of(place, data, "options", list)
        if len(options) < 4:
            raise DataError(f"{place}: field 'options' is {shown(options)}. It must hold 4 texts.")
        pairs = zip("ABCD", options, strict=False)
        fields |= {f"OPTION_{letter}": str(text) for letter, text in pairs}
    elif task == "code_run":
        call = _found(r"func_[0-9]+\(\-?[0-9]+\)", place, asked)
        fields |= {"func": call.partition("(")[0], "func_call": call}
    elif task == "math_find":
        number = _found(r"The .+ of", place, asked).lower()[:-3]
        fields["prefix"] = f"What is {number} in the following list?"
    return fields


def _found(pattern: str, place: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise DataError(
            f"{place}: field 'input' is {shown(text)}. It must name something like {pattern!r}."
        )
    return match[0]


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Fill in the fields at once: a text may have braces of its own."""
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], template)


@cache
def _prompts() -> Mapping[str, Any]:
    """Return InfiniteBench's own templates, and the numbers of tokens of each preset."""
    text = files(__package__).joinpath("prompts.json").read_text(encoding="utf-8")
    prompts: Mapping[str, Any] = json.loads(text)
    return prompts
