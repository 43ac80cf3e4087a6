"""RULER's needles in a haystack: keys with magic values, hidden in noise, essays or needles."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import attrs
import numpy as np
from attrs.validators import optional

from kvpolicy.evaluation.tasks.ruler.length import Fitting, Written, as_samples
from kvpolicy.evaluation.tasks.ruler.options import LengthOptions
from kvpolicy.evaluation.tasks.ruler.sources import (
    ADJECTIVES,
    NOUNS,
    Pairs,
    essays_of,
    sentences_in,
    words_in,
    words_of,
)
from kvpolicy.evaluation.tasks.ruler.template import ALL, NIAH
from kvpolicy.options import a_path, count, one_of
from kvpolicy.task import Metric, Sample

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]
_KINDS = ("numbers", "words", "uuids")


@attrs.frozen(kw_only=True)
class NiahTask(LengthOptions):
    """Needles in a haystack of at most `length` tokens, the answer's included.

    `folder` holds essays and lists of words. See `LengthOptions` for the other options.
    """

    new_tokens: int = attrs.field(default=128, validator=count)
    haystack: str = attrs.field(default="noise", validator=one_of("noise", "essay", "needle"))
    keys: str = attrs.field(default="words", validator=one_of(*_KINDS))
    values: str = attrs.field(default="numbers", validator=one_of(*_KINDS))
    num_keys: int = attrs.field(default=1, validator=count)
    num_values: int = attrs.field(default=1, validator=count)
    num_queries: int = attrs.field(default=1, validator=count)
    folder: str | None = attrs.field(default=None, validator=optional(a_path))

    @property
    def metric(self) -> Metric:
        """The share of the values that are named."""
        return ALL

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Write the prompts."""
        writer = _Writer(self)
        fitting = Fitting(
            tokenizer=tokenizer,
            length=self.room,
            new_tokens=self.new_tokens,
            step=self._step,
            write=writer.write,
        )
        units = fitting.most(fitting.highest(self._step))
        prompts = (fitting.fitting(units) for _ in range(self.num_samples))
        return as_samples(prompts, self.new_tokens)

    @property
    def _step(self) -> int:
        if self.haystack == "essay":
            return 500
        return 5 if self.length < 4096 else 25


class _Writer:
    """Writes one prompt after the other, from one stream of random numbers."""

    def __init__(self, task: NiahTask) -> None:
        self.task, self.rng = task, Random(task.seed)
        self.num_keys = max(task.num_keys, task.num_queries)
        self.essay = words_in(essays_of(task.folder)) if task.haystack == "essay" else []
        self.words: Sequence[str] = []
        if "words" in (task.keys, task.values):
            nouns, adjectives = words_of(task.folder, NOUNS), words_of(task.folder, ADJECTIVES)
            self.words = Pairs(adjectives, nouns)

    def write(self, units: int) -> Written:
        """Return a prompt with so many words of an essay, or lines of noise or needles."""
        task = self.task
        keys, values, needles = [], [], []
        for _ in range(self.num_keys):
            keys.append(self._drawn(task.keys))
            values.append([self._drawn(task.values) for _ in range(task.num_values)])
            needles += [self._needle(keys[-1], value) for value in values[-1]]
        Random(task.seed).shuffle(needles)
        hide = self._in_essay if task.haystack == "essay" else self._in_lines
        context = hide(units, needles)
        asked = self.rng.sample(range(self.num_keys), task.num_queries)
        names = [keys[place] for place in asked]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
        template, kind = NIAH, task.values
        if task.num_queries * task.num_values == 1:
            template = template.replaced("Some", "A").replaced("are all", "is")
            template, kind = template.replaced("are", "is"), kind[:-1]
        prompt = template.filled(type_needle_v=kind, context=context, query=query)
        return prompt, [value for place in asked for value in values[place]]

    def _in_essay(self, units: int, needles: Sequence[str]) -> str:
        repeats = -(-units // len(self.essay))
        text = " ".join((self.essay * repeats)[:units])
        sentences = sentences_in(text)
        depths = self.rng.sample(DEPTHS, len(needles))
        places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        parts: list[str] = []
        for start, end, needle in zip([0, *places], places, needles, strict=False):
            parts += [" ".join(sentences[start:end]), needle]
        return " ".join([*parts, " ".join(sentences[places[-1] :])])

    def _in_lines(self, units: int, needles: Sequence[str]) -> str:
        if self.task.haystack == "noise":
            lines = [NOISE] * units
        else:
            lines = [
                self._needle(self._drawn(self.task.keys), self._drawn(self.task.values))
                for _ in range(units)
            ]
        places = sorted(self.rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.task.values, key=key, value=value)

    def _drawn(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.rng.randint(10**6, 10**7 - 1))
        if kind == "words":
            return self.rng.choice(self.words)
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
