"""Needle in a haystack: one sentence in a text of every length, at every depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np
from attrs.validators import optional

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.ruler.niah import NOISE
from kvpolicy.evaluation.tasks.ruler.sources import essays_of
from kvpolicy.options import a_path, count
from kvpolicy.task import Metric, Sample

NEEDLE = (
    "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny "
    "day.\n"
)
QUESTION = "The best thing to do in San Francisco is: "
EXPECTED = "eat a sandwich and sit in Dolores Park on a sunny day."
_BEFORE = "<|im_start|> This is a very long story book: <book> "
_BEHIND = " </book>.\n Based on the content of the book, Question: {question}\nAnswer:"


def share_of_words(text: str, sample: Sample) -> float:
    """Return the share of the different words of the answer that the text has.

    >>> share_of_words("eat and sit.", Sample(name="1", answers=("eat and sit down",)))
    0.5
    """
    expected = set(sample.answers[0].lower().split())
    return len(expected & set(text.lower().split())) / len(expected)


@attrs.frozen(kw_only=True)
class HaystackTask:
    """A grid of lengths and depths, as ReST-KV's authors run it.

    Lengths go from `shortest` to `longest` tokens by `step`, depths from the beginning (0) to the
    end (100). `folder` holds essays; without one the haystack is RULER's noise. `buffer` tokens of
    each length are left for the question.
    """

    shortest: int = attrs.field(default=1000, validator=count)
    longest: int = attrs.field(default=32000, validator=count)
    step: int = attrs.field(default=200, validator=count)
    num_depths: int = attrs.field(default=10, validator=count)
    buffer: int = attrs.field(default=200, validator=count)
    new_tokens: int = attrs.field(default=30, validator=count)
    folder: str | None = attrs.field(default=None, validator=optional(a_path))

    @property
    def metric(self) -> Metric:
        """The share of the needle's words that the answer has."""
        return Metric(name="share_of_words", judge=share_of_words)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield a sample for each length and depth; its `extra` has both.

        Raises InvalidValueError if the needle does not fit the shortest text.
        """
        needle, hay = self._ids(tokenizer, NEEDLE), self._hay(tokenizer)
        if self.shortest - self.buffer <= len(needle):
            raise InvalidValueError(
                f"shortest {self.shortest} leaves no room for the needle: {self.buffer} tokens are "
                f"for the question, and the needle has {len(needle)}. Give a larger one."
            )
        stops = {self._ids(tokenizer, text)[-1] for text in (".", "end.")}
        depths = np.round(np.linspace(0, 100, num=self.num_depths)).astype(int).tolist()
        for length in range(self.shortest, self.longest + 1, self.step):
            room = hay[: length - self.buffer - len(needle)]
            for depth in depths:
                place = insertion(room, depth, stops)
                text = str(tokenizer.decode([*room[:place], *needle, *room[place:]]))
                yield Sample(
                    name=f"length {length}, depth {depth}",
                    context=_BEFORE + text,
                    question=_BEHIND.format(question=QUESTION),
                    answers=(EXPECTED,),
                    max_new_tokens=self.new_tokens,
                    stop=("\n",),
                    extra={"length": length, "depth": depth},
                )

    def _hay(self, tokenizer: Any) -> list[int]:
        text = f"{NOISE} " if self.folder is None else essays_of(self.folder)
        ids = self._ids(tokenizer, text)
        return ids * -(-self.longest // len(ids))

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def insertion(hay: Sequence[int], depth: int, stops: set[int]) -> int:
    """Return where a needle goes: at its depth, or behind the last full stop before.

    Without a full stop before it goes to the beginning.

    >>> insertion([5, 9, 5, 5, 9, 5], 50, {9}), insertion([5, 5, 5, 5], 50, {9})
    (2, 0)
    """
    place = len(hay) * depth // 100
    while depth < 100 and place and hay[place - 1] not in stops:
        place -= 1
    return place
