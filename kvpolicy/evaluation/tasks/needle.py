"""The task of the small model that ships: find one of many facts, and answer with its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.needle.prompts import NeedlePrompt, generate_prompts
from kvpolicy.evaluation.needle.vocabulary import QUESTION, STOP
from kvpolicy.options import count, natural
from kvpolicy.task import Metric, Sample


@attrs.frozen(kw_only=True)
class NeedleTask:
    """Prompts of `length` words, each of which tells so many `facts`, for any tokenizer.

    The beginning of a text counts as a word, as the needle model's tokenizer has it.
    There are `num_samples` texts, each with so many `questions`.
    """

    length: int = attrs.field(default=512, validator=count)
    facts: int = attrs.field(default=32, validator=count)
    num_samples: int = attrs.field(default=32, validator=count)
    questions: int = attrs.field(default=1, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The whole code must be right."""
        return METRICS["exact_match"]

    def prompts(self) -> list[NeedlePrompt]:
        """Return the prompts, with the places of their facts."""
        return generate_prompts(
            tokens=self.length,
            facts=self.facts,
            count=self.num_samples,
            seed=self.seed,
            questions=self.questions,
        )

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the prompts; an answer ends with the text or with a sentence, as facts do."""
        for number, prompt in enumerate(self.prompts()):
            context, mark, question = prompt.text.rpartition(f" {QUESTION} ")
            answer = tokenizer(f" {prompt.answer}", add_special_tokens=False)["input_ids"]
            yield Sample(
                name=str(number),
                context=context,
                question=mark + question,
                answers=(prompt.answer,),
                # Room for one token more than the answer: its end, or a word too many.
                max_new_tokens=len(answer) + 1,
                stop=(f" {STOP}",),
            )
