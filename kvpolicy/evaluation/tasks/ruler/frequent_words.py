"""RULER's frequent words: the three most frequent of many coded words."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Any

import attrs
import numpy as np
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.ruler.length import Written, as_samples
from kvpolicy.evaluation.tasks.ruler.options import LengthOptions
from kvpolicy.evaluation.tasks.ruler.template import ALL, FREQUENT_WORDS
from kvpolicy.options import count, positive
from kvpolicy.task import Metric, Sample

NOISE = "..."


@attrs.frozen(kw_only=True)
class FrequentWordsTask(LengthOptions):
    """Coded words whose frequencies follow k^-alpha / zeta(alpha), in at most `length` tokens.

    The most frequent "word" is noise, three dots. See `LengthOptions` for the other options.
    """

    new_tokens: int = attrs.field(default=50, validator=count)
    alpha: float = attrs.field(default=2.0, validator=positive)
    letters: int = attrs.field(default=6, validator=count)

    @property
    def metric(self) -> Metric:
        """The share of the three words that are named."""
        return ALL

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Grow a first text until it is full; then write prompts of as many words.

        Raises InvalidValueError if the length is too short for three words, or alpha is 1 or less.
        """
        if self.alpha <= 1:
            raise InvalidValueError(
                f"alpha must be above 1, not {self.alpha}: the sum of k^-alpha has no limit."
            )
        rng, room = Random(self.seed), self.room - self.new_tokens
        if room // 50 < 4:
            raise InvalidValueError(
                f"length {self.length} is too short for three words and noise. Give 200 or more, "
                f"besides {self.new_tokens} tokens for the answer."
            )
        writer = _Writer(self, tokenizer, rng, room)
        number = writer.most()
        return as_samples((writer.write(number) for _ in range(self.num_samples)), self.new_tokens)


class _Writer:
    """Writes one prompt after the other, from one stream of random numbers."""

    def __init__(self, task: FrequentWordsTask, tokenizer: Any, rng: Random, room: int) -> None:
        self.task, self.tokenizer, self.rng, self.room = task, tokenizer, rng, room
        self.step = max(1, room // 32)

    def most(self) -> int:
        """Return how many words a full text has."""
        vocabulary = self._vocabulary()
        number = self.room // self.task.letters
        while self._tokens(self._text(vocabulary, number)) < self.room:
            number += self.step
        return number - self.step

    def write(self, number: int) -> Written:
        """Return a prompt of about so many words, or fewer if it is too long."""
        vocabulary = self._vocabulary()
        written = self._text(vocabulary, number)
        while self._tokens(written) > self.room:
            number -= self.step
            if number <= 0:
                raise InvalidValueError(
                    f"length {self.task.length} is too short for coded words. Give a larger length."
                )
            written = self._text(vocabulary, number)
        return written

    def _vocabulary(self) -> list[str]:
        """Return words in the order of their ranks, noise first."""
        size = self.room // 50
        drawn = [self._word() for _ in range(size)]
        while len(set(drawn)) < size:
            drawn.append(self._word())
        words = sorted(set(drawn))
        Random(self.task.seed).shuffle(words)
        return [NOISE, *words[1:]]

    def _text(self, vocabulary: list[str], number: int) -> Written:
        ranks = np.arange(1, len(vocabulary) + 1)
        zeta = float(torch.special.zeta(torch.tensor(self.task.alpha, dtype=torch.float64), 1))
        counts = (number * ranks**-self.task.alpha / zeta).astype(int)
        words = [
            word
            for word, times in zip(vocabulary, counts.tolist(), strict=True)
            for _ in range(times)
        ]
        Random(self.task.seed).shuffle(words)
        return FREQUENT_WORDS.filled(context=" ".join(words)), vocabulary[1:4]

    def _word(self) -> str:
        return "".join(self.rng.choices(string.ascii_lowercase, k=self.task.letters))

    def _tokens(self, written: Written) -> int:
        return len(self.tokenizer(written[0].text, add_special_tokens=False)["input_ids"])
