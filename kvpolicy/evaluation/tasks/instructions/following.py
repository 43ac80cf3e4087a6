"""Prompts with several instructions: the share of them that a text follows."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from statistics import fmean
from typing import Any

import attrs

from kvpolicy.evaluation.tasks.instructions.rules import MOST, draw_rules, follows, sentence_of
from kvpolicy.evaluation.tasks.ruler.niah import NOISE
from kvpolicy.options import at_most, count, natural
from kvpolicy.task import Metric, Sample

TOPICS = (
    *("a rainy day in a small town", "how bread is made", "a walk to the sea"),
    *("an old clock that stopped", "why people keep gardens", "a train that came late"),
    *("the first snow of a winter", "two friends who lost a key", "a market in the morning"),
    *("how to look after a bicycle", "a lighthouse and its keeper", "a letter that was found"),
)
REQUEST = "\n\nWrite a short text about {topic}. Follow all of the rules above."
CUE = "\n\nText:\n"


def followed(text: str, sample: Sample) -> dict[str, float]:
    """Return for each instruction of a sample whether the text follows it, by its kind."""
    return {rule["kind"]: float(follows(text, rule)) for rule in sample.extra["rules"]}


FOLLOWED = Metric(
    name="instructions_followed",
    judge=lambda text, sample: fmean(followed(text, sample).values()),
    parts=followed,
)
"""The share of the instructions that are followed; a row has each of them in `parts`."""


@attrs.frozen(kw_only=True)
class InstructionsTask:
    """Prompts with so many `rules`, in any order, and then a request to write a text.

    `noise` lines that mean nothing follow each rule, for budgets that a short prompt would not
    feel. Asked outside, the request comes after the rules were evicted.
    """

    rules: int = attrs.field(default=5, validator=[count, at_most(MOST)])
    noise: int = attrs.field(default=0, validator=natural)
    num_samples: int = attrs.field(default=100, validator=count)
    new_tokens: int = attrs.field(default=200, validator=count)
    seed: int = attrs.field(default=42, validator=natural)

    @property
    def metric(self) -> Metric:
        """The share of the instructions that are followed."""
        return FOLLOWED

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the prompts."""
        rng = Random(self.seed)
        for number in range(self.num_samples):
            rules = draw_rules(rng, self.rules)
            lines = [line for rule in rules for line in (sentence_of(rule), *[NOISE] * self.noise)]
            yield Sample(
                name=str(number),
                context="Rules for your text:\n- " + "\n- ".join(lines),
                question=REQUEST.format(topic=rng.choice(TOPICS)),
                cue=CUE,
                max_new_tokens=self.new_tokens,
                extra={"rules": rules},
            )
