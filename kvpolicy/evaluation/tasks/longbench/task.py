"""A task of LongBench, read from its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs

from kvpolicy.errors import DataError, shown
from kvpolicy.evaluation.tasks.files import field_of, lines_of
from kvpolicy.evaluation.tasks.longbench.metrics import metric_of
from kvpolicy.options import a_path, boolean, one_of
from kvpolicy.task import Metric, Sample

TASKS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
    *("gov_report", "qmsum", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
"""The 16 English tasks."""
PLAIN = ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
"""Tasks that go without a chat template."""
_ORIGIN = (
    "It is in data.zip of THUDM/LongBench on the Hugging Face Hub. Unpack that, and give its "
    "folder as option folder=..."
)
_PART = "{context}"


@attrs.frozen(kw_only=True)
class LongBenchTask:
    """The samples of `folder`/`task`.jsonl, or with `extended` of `task`_e.jsonl.

    Presets: `official` uses the chat template if the run does, except for few-shot tasks and code.
    `restkv` uses none, as the published numbers of ReST-KV, and decodes at least one token.
    """

    task: str = attrs.field(validator=one_of(*TASKS))
    folder: str = attrs.field(validator=a_path)
    preset: str = attrs.field(default="official", validator=one_of("official", "restkv"))
    extended: bool = attrs.field(default=False, validator=boolean)

    @property
    def metric(self) -> Metric:
        """LongBench's own."""
        return metric_of(self.task)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the samples of the file.

        Raises DataError if the file cannot be read, or for a line that is none of LongBench's.
        """
        name = f"{self.task}_e.jsonl" if self.extended else f"{self.task}.jsonl"
        prompt = _prompts()[self.task]
        before, _, behind = prompt["prompt"].partition(_PART)
        plain = self.preset == "restkv" or self.task in PLAIN
        least = int(self.preset == "restkv" or self.task == "samsum")
        for number, (place, data) in enumerate(lines_of(Path(self.folder) / name, _ORIGIN)):
            context, asked = (field_of(place, data, field, str) for field in ("context", "input"))
            yield Sample(
                name=f"{number} {data.get('_id', '')}".strip(),
                context=before + context,
                question=behind.replace("{input}", asked),
                answers=_answers(place, data),
                max_new_tokens=prompt["new_tokens"],
                min_new_tokens=least,
                chat=False if plain else None,
                extra=self._extra(place, data),
            )

    def _extra(self, place: str, data: dict[str, Any]) -> dict[str, Any]:
        extra = {"length": data.get("length")}
        if self.task == "trec":
            extra["all_classes"] = field_of(place, data, "all_classes", list)
        return extra


def _answers(place: str, data: dict[str, Any]) -> list[str]:
    answers: list[str] = field_of(place, data, "answers", list)
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{place}: field 'answers' is {shown(answers)}. It must hold texts.")
    return answers


@cache
def _prompts() -> Mapping[str, Any]:
    """Return LongBench's own templates and numbers of tokens."""
    text = files(__package__).joinpath("prompts.json").read_text(encoding="utf-8")
    prompts: Mapping[str, Any] = json.loads(text)
    return prompts
