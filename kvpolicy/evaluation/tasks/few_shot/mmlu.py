"""MMLU: questions with four choices, behind examples of the same subject."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError, InvalidValueError, shown
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.few_shot.item import Item, asked
from kvpolicy.evaluation.tasks.files import field_of
from kvpolicy.evaluation.tasks.hub import HubFile
from kvpolicy.evaluation.tasks.tables import Rows, csv_rows, parquet_rows
from kvpolicy.options import a_path, a_text, count, one_of
from kvpolicy.task import Metric, Sample

ALL = "all"
LETTERS = "ABCD"
_COLUMNS = ("question", *LETTERS, "answer")
_FILES = {
    split: HubFile(repository="cais/mmlu", name=f"all/{split}-00000-of-00001.parquet", size=size)
    for split, size in (("dev", "77 kB"), ("test", "3.5 MB"))
}


@attrs.frozen(kw_only=True)
class MmluTask:
    """MMLU's test questions of a subject, or of all; the examples are the first of dev.

    `folder` holds MMLU's folders `dev` and `test` of .csv files, or the folder `all` of the hub's
    .parquet files. The `shots` examples are evicted before the question is asked. With
    question="inside" the run says where it is asked.
    """

    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    subject: str = attrs.field(default=ALL, validator=a_text)
    shots: int = attrs.field(default=5, validator=count)
    question: str = attrs.field(default="outside", validator=one_of("outside", "inside"))

    @property
    def metric(self) -> Metric:
        """The letter that the model finds likeliest must be right."""
        return METRICS["multiple_choice"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the questions, subject by subject.

        Raises DataError if the files cannot be read, for a row that is none of MMLU's, and if a
        subject has too few examples; InvalidValueError if there is no such subject.
        """
        examples, questions = self._by_subject("dev"), self._by_subject("test")
        if self.subject != ALL and self.subject not in questions:
            raise InvalidValueError(
                f"MMLU has no subject {shown(self.subject)} there. It has: {ALL}, "
                f"{', '.join(questions)}."
            )
        for subject in questions if self.subject == ALL else [self.subject]:
            shown_first = examples.get(subject, [])[: self.shots]
            if len(shown_first) < self.shots:
                raise DataError(
                    f"dev has {len(shown_first)} examples of {subject}, fewer than shots "
                    f"{self.shots}. Give fewer shots."
                )
            about = subject.replace("_", " ")
            yield from asked(
                questions[subject],
                shown_first,
                instruction="The following are multiple choice questions (with answers) about "
                f"{about}.\n\n",
                outside=self.question == "outside",
            )

    def _by_subject(self, split: str) -> dict[str, list[Item]]:
        found: dict[str, list[Item]] = {}
        for place, row in _rows(self.folder, split):
            subject = field_of(place, row, "subject", str)
            items = found.setdefault(subject, [])
            items.append(_item(f"{subject} {len(items)}", place, row))
        return found


def _rows(folder: str | None, split: str) -> Rows:
    """Yield the rows of all subjects, as the hub's files have them."""
    file = _FILES[split]
    if folder is None:
        yield from parquet_rows(file.fetched(), file.origin)
        return
    tables = sorted((Path(folder) / split).glob(f"*_{split}.csv"))
    if not tables:
        yield from parquet_rows(Path(folder) / file.name, file.origin)
    for table in tables:
        subject = table.stem.removesuffix(f"_{split}")
        for place, row in csv_rows(table, file.origin, _COLUMNS):
            answer = LETTERS.find(row["answer"]) if row["answer"] else -1
            choices = [row[letter] for letter in LETTERS]
            yield place, row | {"subject": subject, "choices": choices, "answer": answer}


def _item(name: str, place: str, row: dict[str, Any]) -> Item:
    question, choices = field_of(place, row, "question", str), field_of(place, row, "choices", list)
    answer = field_of(place, row, "answer", int)
    if len(choices) != len(LETTERS) or not 0 <= answer < len(LETTERS):
        raise DataError(
            f"{place} has {len(choices)} choices and the answer {shown(answer)}. It must have 4 "
            "choices, and A, B, C or D (0 to 3) as the answer."
        )
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))
    return Item(
        name=name,
        text=f"{question.strip()}\n{options}\nAnswer:",
        choices=[f" {letter}" for letter in LETTERS],
        answer=answer,
    )
