"""The task of the small model that ships: find one of many facts, and answer with its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.needle.prompts import CODE_LENGTH, generate_prompts
from kvpolicy.evaluation.needle.vocabulary import QUESTION
from kvpolicy.options import count, natural
from kvpolicy.task import Metric, Sample


@attrs.frozen(kw_only=True)
class NeedleTask:
    """Prompts of `length` words of the needle model, each of which tells so many `facts`."""

    length: int = attrs.field(default=512, validator=count)
    facts: int = attrs.field(default=32, validator=count)
    num_samples: int = attrs.field(default=32, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The whole code must be right."""
        return METRICS["exact_match"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the prompts; every tokenizer of whole words gives them the same length."""
        prompts = generate_prompts(
            tokens=self.length, facts=self.facts, count=self.num_samples, seed=self.seed
        )
        for number, prompt in enumerate(prompts):
            context, mark, question = prompt.text.rpartition(f" {QUESTION} ")
            yield Sample(
                name=str(number),
                context=context,
                question=mark + question,
                answers=(prompt.answer,),
                max_new_tokens=CODE_LENGTH + 1,
            )
