"""The tasks of the small model that ships: find one of many facts, and answer with its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.needle.kinds import KINDS, write
from kvpolicy.evaluation.needle.prompts import NeedlePrompt, generate_prompts
from kvpolicy.evaluation.needle.vocabulary import QUESTION, STOP
from kvpolicy.options import count, natural, one_of
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
            yield _sample(number, context, mark + question, prompt.answer, tokenizer)


@attrs.frozen(kw_only=True)
class NeedleKindTask:
    """The same with texts of another `kind`, in the needle model's own words.

    `repeated` tells each fact twice. `updated` tells another code of each name later, which counts.
    `in_a_row` asks for four facts, and gives the answers of the first three. A text has `length`
    words and so many `facts`; a fact that is told twice counts once.
    """

    kind: str = attrs.field(validator=one_of(*KINDS))
    length: int = attrs.field(default=512, validator=count)
    facts: int = attrs.field(default=16, validator=count)
    num_samples: int = attrs.field(default=32, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The whole code must be right."""
        return METRICS["exact_match"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the prompts.

        Raises InvalidValueError unless the facts and the questions fit.
        """
        prompts = write(
            self.kind,
            tokens=self.length,
            facts=self.facts,
            count=self.num_samples,
            seed=self.seed,
        )
        for number, asked in enumerate(prompts):
            yield _sample(number, asked.context, f" {asked.question}", asked.answer, tokenizer)


def _sample(number: int, context: str, question: str, answer: str, tokenizer: Any) -> Sample:
    return Sample(
        name=str(number),
        context=context,
        question=question,
        answers=(answer,),
        # Room for one token more than the answer: its end, or a word too many.
        max_new_tokens=len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) + 1,
        stop=(f" {STOP}",),
    )
