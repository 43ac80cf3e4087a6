"""A task of LongBench, read from its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError, InvalidValueError, shown
from kvpolicy.evaluation.tasks.files import field_of, file_in, lines_of
from kvpolicy.evaluation.tasks.hub import HubFile
from kvpolicy.evaluation.tasks.longbench.chinese import check_words
from kvpolicy.evaluation.tasks.longbench.metrics import CLASSES, WORDS, metric_of
from kvpolicy.options import a_path, one_of
from kvpolicy.task import Metric, Sample

TASKS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
    *("gov_report", "qmsum", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
"""The 16 English tasks."""
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
"""The 5 Chinese tasks."""
EXTENDED = tuple(task for task in TASKS if task not in ("narrativeqa", "musique", "qmsum"))
"""The 13 tasks of LongBench-E, whose texts are of all lengths."""
BUCKETS: Mapping[str, tuple[float, float]] = {
    "0-4k": (0, 4000),
    "4-8k": (4000, 8000),
    "from-8k": (8000, inf),
}
"""The lengths by which LongBench-E is scored, in words: from, and up to but without."""
PLAIN = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
"""Tasks that go without a chat template."""
_ARCHIVE = HubFile(
    repository="THUDM/LongBench",
    name="data.zip",
    size="114 MB",
    instead="Give it, or the folder of its files, as option folder=...",
)
_PART = "{context}"


@attrs.frozen(kw_only=True)
class LongBenchTask:
    """The samples of a task's file in `folder`: a folder, or LongBench's data.zip.

    Without a folder data.zip is downloaded from the hub, once.

    With a `bucket` they are those of LongBench-E that are so long; see `BUCKETS`.

    Presets: `official` uses the chat template if the run does, except for few-shot tasks and code.
    `restkv` uses none, as the published numbers of ReST-KV, and decodes at least one token.

    Raises InvalidValueError for a bucket of a task that LongBench-E does not have, and
    MissingPackageError if a Chinese task needs the package jieba.
    """

    task: str = attrs.field(validator=one_of(*TASKS, *CHINESE))
    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    preset: str = attrs.field(default="official", validator=one_of("official", "restkv"))
    bucket: str | None = attrs.field(default=None, validator=optional(one_of(*BUCKETS)))

    def __attrs_post_init__(self) -> None:
        """Look for what is missing before the work begins."""
        if self.bucket is not None and self.task not in EXTENDED:
            raise InvalidValueError(
                f"'bucket' is for the tasks of LongBench-E, and {self.task!r} is none of them. It "
                f"has: {', '.join(EXTENDED)}."
            )
        if self.task in WORDS:
            check_words(self.task)

    @property
    def metric(self) -> Metric:
        """LongBench's own."""
        return metric_of(self.task)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the samples of the file.

        Raises DataError if the file cannot be read, or for a line that is none of LongBench's.
        """
        name = f"{self.task}.jsonl" if self.bucket is None else f"{self.task}_e.jsonl"
        folder = _ARCHIVE.fetched() if self.folder is None else Path(self.folder)
        lines = lines_of(file_in(folder, name), _ARCHIVE.origin)
        prompt = _prompts()[self.task]
        before, _, behind = prompt["prompt"].partition(_PART)
        plain = self.preset == "restkv" or self.task in PLAIN
        least = int(self.preset == "restkv" or self.task == "samsum")
        for number, (place, data) in enumerate(lines):
            if not self._in_bucket(place, data):
                continue
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

    def _in_bucket(self, place: str, data: dict[str, Any]) -> bool:
        if self.bucket is None:
            return True
        low, high = BUCKETS[self.bucket]
        return bool(low <= field_of(place, data, "length", int) < high)

    def _extra(self, place: str, data: dict[str, Any]) -> dict[str, Any]:
        extra = {"length": data.get("length")}
        if self.task in CLASSES:
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
