"""RULER's common words: which ten words of a numbered list come up most often."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.ruler.length import Fitting, Written, as_samples
from kvpolicy.evaluation.tasks.ruler.options import LengthOptions
from kvpolicy.evaluation.tasks.ruler.sources import ADJECTIVES, NOUNS, VERBS, words_of
from kvpolicy.evaluation.tasks.ruler.template import ALL, COMMON_WORDS, Template
from kvpolicy.options import a_path, count
from kvpolicy.task import Metric, Sample

_SHOWN = 4096
_STEP = 10


@attrs.frozen(kw_only=True)
class CommonWordsTask(LengthOptions):
    """Ten words `often` times and others `seldom` times, in at most `length` tokens.

    Below 4,096 tokens they are 6 and 1 times, as in RULER. `folder` holds lists of words. A text
    has no more words than the lists: at 131,072 tokens, where RULER goes on with a list of its own,
    it may stay shorter. See `LengthOptions` for the other options.
    """

    new_tokens: int = attrs.field(default=120, validator=count)
    often: int = attrs.field(default=30, validator=count)
    seldom: int = attrs.field(default=3, validator=count)
    num_common: int = attrs.field(default=10, validator=count)
    folder: str | None = attrs.field(default=None, validator=optional(a_path))

    @property
    def metric(self) -> Metric:
        """The share of the common words that are named."""
        return ALL

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Write the prompts."""
        writer = _Writer(self)
        fitting = Fitting(
            tokenizer=tokenizer,
            length=self.room,
            new_tokens=self.new_tokens,
            step=_STEP,
            write=writer.write,
        )
        shown = min(_SHOWN, len(writer.words))
        tokens = fitting.tokens(writer.write(shown)[0].text)
        highest = int(fitting.length // (tokens / shown)) * 2
        units = fitting.most(min(highest, len(writer.words)))
        prompts = (fitting.fitting(units) for _ in range(self.num_samples))
        return as_samples(prompts, self.new_tokens)


class _Writer:
    """Writes one prompt after the other, from one stream of random numbers."""

    def __init__(self, task: CommonWordsTask) -> None:
        self.task, self.rng = task, Random(task.seed)
        self.words = sorted(set(words_of(task.folder, NOUNS, ADJECTIVES, VERBS)))
        Random(task.seed).shuffle(self.words)

    def write(self, units: int) -> Written:
        """Return a prompt with so many different words, behind an example."""
        short = self.task.length < 4096
        shown, found = self._list(*((20, 3, 1) if short else (40, 10, 3)))
        often, seldom = (6, 1) if short else (self.task.often, self.task.seldom)
        context, answers = self._list(units, often, seldom)
        example = COMMON_WORDS.filled(context=shown).text + " " + _numbered(found)
        prompt: Template = COMMON_WORDS.filled(context=context)
        return attrs.evolve(prompt, context=f"{example}\n{prompt.context}"), answers

    def _list(self, number: int, often: int, seldom: int) -> tuple[str, list[str]]:
        if number > len(self.words):
            raise InvalidValueError(
                f"a list of {number:,} different words is needed, and there are "
                f"{len(self.words):,}. Give a smaller length, or lists of more words in folder=..."
            )
        drawn = self.rng.sample(self.words, number)
        common, others = drawn[: self.task.num_common], drawn[self.task.num_common :]
        listed = common * often + others * seldom
        Random(self.task.seed).shuffle(listed)
        return _numbered(listed), common


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
