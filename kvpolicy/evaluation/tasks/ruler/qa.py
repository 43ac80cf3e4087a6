"""RULER's questions about documents of SQuAD or HotpotQA, among other documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import DataError
from kvpolicy.evaluation.tasks.files import json_of
from kvpolicy.evaluation.tasks.ruler.length import Fitting, Written, as_samples
from kvpolicy.evaluation.tasks.ruler.options import LengthOptions
from kvpolicy.evaluation.tasks.ruler.template import PART, QA
from kvpolicy.options import a_path, count, one_of
from kvpolicy.task import Metric, Sample

_STEP = 10
_ORIGIN = {
    "squad": "It is dev-v2.0.json of SQuAD 2.0 (4.4 MB) under RULER's name.",
    "hotpotqa": "It is hotpot_dev_distractor_v1.json of HotpotQA (46 MB) under RULER's name.",
}


@attrs.frozen(kw_only=True)
class Question:
    """A question, its answers, and the numbers of its documents and of those of its article."""

    text: str
    answers: Sequence[str]
    documents: Sequence[int]
    article: Sequence[int] = ()


@attrs.frozen(kw_only=True)
class QaTask(LengthOptions):
    """Questions about documents, among others that do not matter, in at most `length` tokens.

    `folder` holds squad.json or hotpotqa.json. See `LengthOptions` for the other options.
    """

    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    dataset: str = attrs.field(default="squad", validator=one_of(*_ORIGIN))
    new_tokens: int = attrs.field(default=32, validator=count)

    @property
    def metric(self) -> Metric:
        """Whether an answer is named."""
        return PART

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Write a prompt for each of the first questions.

        Raises DataError if the file cannot be read or is another.
        """
        if self.folder is None:
            raise DataError(
                f"this task asks about documents. Give the folder that holds {self.dataset}.json "
                f"as option folder=... {_ORIGIN[self.dataset]}"
            )
        file = Path(self.folder) / f"{self.dataset}.json"
        data = json_of(file, _ORIGIN[self.dataset])
        try:
            questions, documents = {"squad": read_squad, "hotpotqa": read_hotpotqa}[self.dataset](
                data
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{str(file)!r} is no file of {self.dataset}: {error}. {_ORIGIN[self.dataset]}"
            ) from error
        rng = Random(self.seed)

        def fitting(number: int) -> Fitting:
            return Fitting(
                tokenizer=tokenizer,
                length=self.room,
                new_tokens=self.new_tokens,
                step=_STEP,
                write=lambda units: _write(rng, self.seed, questions[number], documents, units),
            )

        first = fitting(0)
        units = first.most(first.highest(_STEP))
        numbers = range(min(self.num_samples, len(questions)))
        return as_samples((fitting(number).fitting(units) for number in numbers), self.new_tokens)


def read_squad(data: Any) -> tuple[list[Question], list[str]]:
    """Return SQuAD's questions that have an answer, and all paragraphs, sorted."""
    articles = [[each["context"] for each in one["paragraphs"]] for one in data["data"]]
    documents = sorted({text for article in articles for text in article})
    numbers = {text: number for number, text in enumerate(documents)}
    questions = [
        Question(
            text=asked["question"],
            answers=[answer["text"] for answer in asked["answers"]],
            documents=[numbers[paragraph["context"]]],
            article=[
                numbers[text] for text in article if numbers[text] != numbers[paragraph["context"]]
            ],
        )
        for one, article in zip(data["data"], articles, strict=True)
        for paragraph in one["paragraphs"]
        for asked in paragraph["qas"]
        if not asked["is_impossible"]
    ]
    return questions, documents


def read_hotpotqa(data: Any) -> tuple[list[Question], list[str]]:
    """Return HotpotQA's questions, and all documents, sorted: the title and then the sentences."""
    texts = [[f"{title}\n{''.join(lines)}" for title, lines in one["context"]] for one in data]
    documents = sorted({text for own in texts for text in own})
    numbers = {text: number for number, text in enumerate(documents)}
    questions = [
        Question(
            text=one["question"], answers=[one["answer"]], documents=[numbers[text] for text in own]
        )
        for one, own in zip(data, texts, strict=True)
    ]
    return questions, documents


def _write(
    rng: Random, seed: int, question: Question, documents: Sequence[str], units: int
) -> Written:
    """Return a prompt with so many documents, or with all there are, repeated."""
    own, more = list(question.documents), list(question.article)
    if units < len(documents):
        if units - len(own) > len(more):
            known = {*own, *more}
            others = [number for number in range(len(documents)) if number not in known]
            chosen = own + more + rng.sample(others, max(0, units - len(own) - len(more)))
        else:
            chosen = own + rng.sample(more, max(0, units - len(own)))
        shown = [documents[number] for number in chosen]
    else:
        shown = (list(documents) * -(-units // len(documents)))[:units]
    Random(seed).shuffle(shown)
    context = "\n\n".join(f"Document {place}:\n{text}" for place, text in enumerate(shown, start=1))
    return QA.filled(context=context, query=question.text), list(question.answers)
