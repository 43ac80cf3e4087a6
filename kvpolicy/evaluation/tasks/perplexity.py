"""Perplexity of a long text that is read bit by bit, with an eviction after each bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from kvpolicy.errors import DataError, InvalidValueError, shown
from kvpolicy.evaluation.tasks.files import field_of, lines_of, text_of
from kvpolicy.options import a_path, count, one_of
from kvpolicy.task import Metric, Sample

_JOINS = {"nothing": "", "blank line": "\n\n"}
_ORIGIN = (
    "Give a text (.txt, .raw), JSON lines with a field 'text' (.jsonl), or a folder of these: "
    "wiki.test.raw of WikiText-2 (1.3 MB), say, or a book of PG-19."
)


@attrs.frozen(kw_only=True)
class PerplexityTask:
    """Stretches of `length` tokens of a text, each read with a cache of its own.

    `chunk` tokens are read at a time, and evicted after. 1 is the protocol of StreamingLLM and
    LaCache; every policy then evicts at each token. `join` puts pieces (the lines of .jsonl, the
    files of a folder) together: with `nothing` in between, as in LaCache, or a `blank line`, as is
    usual for WikiText-2.
    """

    path: str = attrs.field(validator=a_path)
    length: int = attrs.field(default=2048, validator=count)
    chunk: int = attrs.field(default=1, validator=count)
    num_samples: int = attrs.field(default=16, validator=count)
    join: str = attrs.field(default="nothing", validator=one_of(*_JOINS))

    @property
    def metric(self) -> Metric:
        """The perplexity of all tokens but the first of each stretch."""
        return Metric(name="perplexity", asks="stream", chunk=self.chunk)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield stretches from the beginning of the text on; a short rest is left out.

        Raises DataError if the text cannot be read, InvalidValueError if it is too short for one.
        """
        text = _JOINS[self.join].join(_pieces(Path(self.path)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) < self.length:
            raise InvalidValueError(
                f"the text in {shown(self.path)} has {len(ids):,} tokens, fewer than length "
                f"{self.length:,}. Give a smaller length or a longer text."
            )
        starts = range(0, len(ids) - self.length + 1, self.length)
        for number, start in enumerate(starts[: self.num_samples]):
            stretch = tokenizer.decode(ids[start : start + self.length])
            yield Sample(name=str(number), context=stretch, chat=False)


def _pieces(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".raw", ".jsonl"))
        if not files:
            raise DataError(f"there is no text in {shown(str(path))}. {_ORIGIN}")
        for file in files:
            yield from _pieces(file)
    elif path.suffix == ".jsonl":
        for place, data in lines_of(path, _ORIGIN):
            yield field_of(place, data, "text", str)
    else:
        yield text_of(path, _ORIGIN)
