"""Perplexity of texts that every Python has: the sources and the help topics of its library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.options import count, natural, one_of
from kvpolicy.task import Metric, Sample

_WIDTH = 8
"""A text of so many characters for each token is surely long enough."""


@attrs.frozen(kw_only=True)
class StandardLibraryTask:
    """Stretches of `length` tokens from different texts, each read with a cache of its own.

    `kind` is `prose`, the help topics of `pydoc`, or `code`, the modules of the standard library.
    The stretches are from the middle of texts that `seed` draws. `chunk` tokens are read at a time,
    and evicted after; 1 is the protocol of StreamingLLM. Other versions of Python have other texts.
    """

    kind: str = attrs.field(default="prose", validator=one_of("prose", "code"))
    length: int = attrs.field(default=512, validator=count)
    chunk: int = attrs.field(default=64, validator=count)
    num_samples: int = attrs.field(default=16, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The perplexity of all tokens but the first of each stretch."""
        return Metric(name="perplexity", asks="stream", chunk=self.chunk)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the stretches, under the names of their texts.

        Raises InvalidValueError if too few texts are long enough.
        """
        room = _WIDTH * self.length
        texts = [(name, text) for name, text in _texts(self.kind) if len(text) >= room]
        if len(texts) < self.num_samples:
            raise InvalidValueError(
                f"{len(texts)} texts of the standard library ({self.kind}) are long enough for "
                f"stretches of {self.length} tokens, fewer than num_samples {self.num_samples}. "
                "Give fewer samples or a smaller length."
            )
        Random(self.seed).shuffle(texts)
        for name, text in texts[: self.num_samples]:
            start = (len(text) - room) // 2
            ids = tokenizer(text[start : start + room], add_special_tokens=False)["input_ids"]
            yield Sample(name=name, context=tokenizer.decode(ids[: self.length]), chat=False)


def _texts(kind: str) -> Iterator[tuple[str, str]]:
    """Yield names and texts, in order of the names."""
    if kind == "prose":
        from pydoc_data.topics import topics

        yield from sorted(topics.items())
        return
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.name, file.read_text(encoding="utf-8")
