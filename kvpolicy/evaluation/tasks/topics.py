"""Choices that every Python has texts for: which title a help topic has."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.options import at_least, count, natural
from kvpolicy.task import Metric, Sample

QUESTION = "\n\nThe title of this text is:"


@attrs.frozen(kw_only=True)
class TopicsTask:
    """The first `length` tokens of a help topic of `pydoc`, and `choices` titles of topics.

    The right title is one of them; `seed` draws the topics and the other titles. The title itself
    is left out of the text. Other versions of Python have other texts.
    """

    length: int = attrs.field(default=256, validator=count)
    choices: int = attrs.field(default=4, validator=[count, at_least(2)])
    num_samples: int = attrs.field(default=16, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The title that the model finds likeliest must be right."""
        return METRICS["multiple_choice"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the topics, under their names.

        Raises InvalidValueError if too few topics are long enough, or if there are too few titles.
        """
        texts = dict(_topics())
        titles = sorted({title for title, _ in texts.values()})
        if self.choices > len(titles):
            raise InvalidValueError(
                f"there are {len(titles)} titles of help topics, fewer than choices "
                f"{self.choices}. Give fewer choices."
            )
        rng = Random(self.seed)
        order = sorted(texts)
        rng.shuffle(order)
        number = 0
        for name in order:
            title, text = texts[name]
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            others = rng.sample([each for each in titles if each != title], self.choices - 1)
            offered = sorted([title, *others], key=lambda _: rng.random())
            if len(ids) < self.length or number == self.num_samples:
                continue
            number += 1
            yield Sample(
                name=name,
                context=tokenizer.decode(ids[: self.length]),
                question=QUESTION,
                answers=(f" {title}",),
                choices=tuple(f" {each}" for each in offered),
                chat=False,
            )
        if number < self.num_samples:
            raise InvalidValueError(
                f"{number} help topics have {self.length} tokens, fewer than num_samples "
                f"{self.num_samples}. Give fewer samples or a smaller length."
            )


def _topics() -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the name of each topic, its title, and the text below the title."""
    from pydoc_data.topics import topics

    for name, topic in topics.items():
        title, _, text = topic.strip().partition("\n")
        yield name, (title.strip(), text.lstrip("*\n "))
