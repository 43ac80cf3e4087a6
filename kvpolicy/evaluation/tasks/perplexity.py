"""Perplexity of a long text that is read bit by bit, with an eviction after each bit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError, InvalidValueError, shown
from kvpolicy.evaluation.tasks.files import field_of, lines_of, text_of
from kvpolicy.evaluation.tasks.hub import HubFile
from kvpolicy.evaluation.tasks.tables import parquet_rows
from kvpolicy.options import a_path, a_text, count, one_of
from kvpolicy.task import Metric, Sample

_JOINS = {"nothing": "", "blank line": "\n\n"}
_INSTEAD = "Give it as option path=..."
DATASETS: Mapping[str, HubFile] = {
    "wikitext2": HubFile(
        repository="Salesforce/wikitext",
        name="wikitext-2-raw-v1/test-00000-of-00001.parquet",
        size="0.7 MB",
        instead=_INSTEAD,
    ),
    "pg19": HubFile(
        repository="emozilla/pg19-test",
        name="data/test-00000-of-00001-29a571947c0b5ccc.parquet",
        size="25 MB",
        instead=_INSTEAD,
    ),
}
"""The texts that come from the hub: the test data of WikiText-2, and of PG-19."""
_SUFFIXES = (".txt", ".raw", ".jsonl", ".parquet")
_ORIGIN = (
    "Give a text (.txt, or .raw of WikiText), JSON lines or a table with a column of texts "
    "(.jsonl, .parquet), or a folder of these: wiki.test.raw of WikiText-2 (1.3 MB), say, or a "
    "book of PG-19."
)
_CHARACTERS = 8
"""So many characters for each token are read first; more if they turn out too few."""
_SURPLUS = 64
"""Tokens behind those that are asked for: where a text is cut, the last ones may be others."""


@attrs.frozen(kw_only=True)
class PerplexityTask:
    """Stretches of `length` tokens of a text, each read with a cache of its own.

    `chunk` tokens are read at a time, and evicted after. 1 is the protocol of StreamingLLM and
    LaCache; every policy then evicts at each token. The text is in `path`, or that of a `dataset`
    on the hub. `join` puts its pieces together (the lines of .jsonl and of WikiText's .raw, the
    rows of .parquet, the files of a folder): with `nothing` in between, as in LaCache, or a `blank
    line`, as is usual for WikiText-2. `column` holds the texts of .jsonl and .parquet.

    Raises InvalidValueError if there is neither a path nor a data set.
    """

    path: str | None = attrs.field(default=None, validator=optional(a_path))
    dataset: str | None = attrs.field(default=None, validator=optional(one_of(*DATASETS)))
    column: str = attrs.field(default="text", validator=a_text)
    length: int = attrs.field(default=2048, validator=count)
    chunk: int = attrs.field(default=1, validator=count)
    num_samples: int = attrs.field(default=16, validator=count)
    join: str = attrs.field(default="nothing", validator=one_of(*_JOINS))

    def __attrs_post_init__(self) -> None:
        """Look for what is missing before the work begins."""
        if self.path is None and self.dataset is None:
            raise InvalidValueError(
                f"'path' is missing, and no 'dataset' ({', '.join(DATASETS)}) takes its place. "
                f"{_ORIGIN}"
            )

    @property
    def metric(self) -> Metric:
        """The perplexity of all tokens but the first of each stretch."""
        return Metric(name="perplexity", asks="stream", chunk=self.chunk)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield stretches from the beginning of the text on; a short rest is left out.

        Raises DataError if the text cannot be read, InvalidValueError if it is too short for one.
        """
        ids = self._ids(tokenizer)
        if len(ids) < self.length:
            raise InvalidValueError(
                f"the text in {shown(self.path or self.dataset)} has {len(ids):,} tokens, fewer "
                f"than length {self.length:,}. Give a smaller length or a longer text."
            )
        starts = range(0, len(ids) - self.length + 1, self.length)
        for number, start in enumerate(starts[: self.num_samples]):
            stretch = tokenizer.decode(ids[start : start + self.length])
            yield Sample(name=str(number), context=stretch, chat=False)

    def _ids(self, tokenizer: Any) -> list[int]:
        """Return the tokens of the text, or of as much of it as is asked for."""
        needed = self.length * self.num_samples
        pieces, taken, read, wanted = self._pieces(), list[str](), 0, _CHARACTERS * needed
        while True:
            for piece in pieces:
                taken.append(piece)
                read += len(piece)
                if read >= wanted:
                    break
            text = _JOINS[self.join].join(taken)
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            if read < wanted or len(ids) >= needed + _SURPLUS:
                return ids
            wanted *= 2

    def _pieces(self) -> Iterator[str]:
        if self.path is not None:
            return _pieces(Path(self.path), self.column, _ORIGIN)
        file = DATASETS[self.dataset or ""]
        return _pieces(file.fetched(), self.column, file.origin)


def _pieces(path: Path, column: str, origin: str) -> Iterator[str]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise DataError(f"there is no text in {shown(str(path))}. {origin}")
        for file in files:
            yield from _pieces(file, column, origin)
    elif path.suffix in (".jsonl", ".parquet"):
        rows = (lines_of if path.suffix == ".jsonl" else parquet_rows)(path, origin)
        for place, data in rows:
            yield field_of(place, data, column, str)
    elif path.suffix == ".raw":
        # As on the hub: a line is a row, and one of blanks an empty row.
        yield from (line if line.strip() else "" for line in io.StringIO(text_of(path, origin)))
    else:
        yield text_of(path, origin)
