"""GLUE: a sentence or two, and what is said of them, behind examples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError, shown
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.few_shot.formats import FORMATS, Format
from kvpolicy.evaluation.tasks.few_shot.item import Item, asked
from kvpolicy.evaluation.tasks.files import field_of
from kvpolicy.evaluation.tasks.hub import HubFile
from kvpolicy.evaluation.tasks.tables import Rows, parquet_rows, tsv_rows
from kvpolicy.options import a_path, count, natural, one_of
from kvpolicy.task import Metric, Sample

_POOL = 10_000
"""The examples are drawn from so many rows at the beginning of the training data."""


@attrs.frozen(kw_only=True)
class GlueTask:
    """GLUE's validation data of a task, behind `shots` examples of its training data.

    `folder` holds GLUE's own folders of .tsv files (such as SST-2), or the hub's folders of
    .parquet files (such as sst2). All items have the same examples, which `seed` draws. They are
    evicted before the item is asked. With question="inside" the run says where it is asked.
    """

    task: str = attrs.field(validator=one_of(*FORMATS))
    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    shots: int = attrs.field(default=16, validator=count)
    seed: int = attrs.field(default=42, validator=natural)
    question: str = attrs.field(default="outside", validator=one_of("outside", "inside"))

    @property
    def metric(self) -> Metric:
        """GLUE's own of the choices that the model finds likeliest.

        That is Matthews' correlation for CoLA, F1 for MRPC and QQP, and the accuracy for the
        others. Where it is not the score, the accuracy is a part of the rows.
        """
        return METRICS[FORMATS[self.task].metric]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the items.

        Raises DataError if the files cannot be read, for a row that is none of the task's, and if
        there are too few examples.
        """
        form = FORMATS[self.task]
        pool = list(islice(_items(form, self.folder, "train", "train"), _POOL))
        if len(pool) < self.shots:
            raise DataError(
                f"the training data of {self.task} have {len(pool)} examples, fewer than shots "
                f"{self.shots}. Give fewer shots."
            )
        yield from asked(
            _items(form, self.folder, form.dev, form.validation),
            Random(self.seed).sample(pool, self.shots),
            outside=self.question == "outside",
        )


def _items(form: Format, folder: str | None, own: str, hub: str) -> Iterator[Item]:
    """Yield the items of a split, by its names in GLUE's own files and on the hub."""
    for number, (place, row) in enumerate(_rows(form, folder, own, hub)):
        yield Item(
            name=str(number),
            text=_text(form, place, row),
            choices=[f" {choice}" for choice in form.choices],
            answer=_label(form, place, row),
        )


def _rows(form: Format, folder: str | None, own: str, hub: str) -> Rows:
    """Yield the rows of a split with the hub's names of columns."""
    name = f"{form.config}/{hub}-00000-of-00001.parquet"
    file = HubFile(repository="nyu-mll/glue", name=name, size=f"{form.size} in all")
    if folder is None:
        yield from parquet_rows(file.fetched(), file.origin)
        return
    table = Path(folder) / form.folder / f"{own}.tsv"
    if not table.is_file():
        yield from parquet_rows(Path(folder) / name, file.origin)
        return
    # A few rows of GLUE's own files are cut; the hub's files leave them out too.
    for place, row in tsv_rows(table, file.origin, form.header, cut=True):
        yield place, {form.columns.get(column, column): text for column, text in row.items()}


def _text(form: Format, place: str, row: dict[str, Any]) -> str:
    names = [name for _, name, _, _ in Formatter().parse(form.prompt) if name]
    fields = {name: field_of(place, row, name, str) for name in names}
    if "hypothesis" in fields:  # as in lm-evaluation-harness
        fields["hypothesis"] = fields["hypothesis"].strip().removesuffix(".") + "."
    return form.prompt.format(**fields)


def _label(form: Format, place: str, row: dict[str, Any]) -> int:
    label = row.get("label")
    if isinstance(label, str) and label in form.labels:
        return form.labels.index(label)
    if isinstance(label, int) and 0 <= label < len(form.labels):
        return label
    raise DataError(
        f"{place}: field 'label' is {shown(label)}. It must be one of {', '.join(form.labels)}, or "
        f"a number from 0 to {len(form.labels) - 1}."
    )
