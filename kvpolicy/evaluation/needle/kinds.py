"""Other texts for the needle model: facts told more than once, and several questions in a row.

A kind asks the model that ships, in the sentences that it was trained on; a variant
(`kvpolicy.evaluation.needle.variants`) has sentences of its own, and a model trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import attrs

from kvpolicy.evaluation.needle.asked import Asked, Write, drawn
from kvpolicy.evaluation.needle.prompts import (
    CODE_LENGTH,
    QUESTION_LENGTH,
    Document,
    check_fit,
    check_questions,
    document_of,
    question,
    write_document,
    write_fact,
)
from kvpolicy.evaluation.needle.vocabulary import EOS, NAMES

TIMES = 2
"""How often a fact is told that is told more than once."""
EARLIER = 3
"""How many questions stand before the last, each with its answer."""


def repeated(rng: Random, tokens: int, facts: int) -> Asked:
    """Tell each fact twice, in the same words: it is known as long as one of them is kept."""
    told = [write_fact(rng, name) for name in rng.sample(NAMES, facts)] * TIMES
    document = document_of(rng, told, tokens=tokens - QUESTION_LENGTH)
    return _about(document, rng.choice(document.facts).name)


def updated(rng: Random, tokens: int, facts: int) -> Asked:
    """Tell a code of each name, and later another one, which counts."""
    names = rng.sample(NAMES, facts)
    told = [write_fact(rng, name) for _ in range(TIMES) for name in names]
    document = document_of(rng, told, tokens=tokens - QUESTION_LENGTH)
    return _about(document, rng.choice(names))


def in_a_row(rng: Random, tokens: int, facts: int) -> Asked:
    """Ask for several facts, one after the other; the answers of all but the last are given."""
    document = write_document(rng, tokens=tokens - _length(EARLIER), facts=facts)
    *earlier, last = rng.sample(document.facts, EARLIER + 1)
    answered = [word for fact in earlier for word in (*question(fact.name), *fact.code, EOS)]
    asked = _about(document, last.name)
    return attrs.evolve(asked, question=" ".join([*answered, asked.question]))


KINDS: Mapping[str, tuple[Write, int, int]] = {
    "repeated": (repeated, TIMES, 0),
    "updated": (updated, TIMES, 0),
    "in_a_row": (in_a_row, 1, EARLIER),
}
"""Each kind of text, how often a fact is told, and how many questions stand before the last."""


def write(kind: str, *, tokens: int, facts: int, count: int, seed: int) -> list[Asked]:
    """Write prompts of a kind, all `tokens` words long, with so many facts; see `KINDS`.

    >>> [asked] = write("repeated", tokens=40, facts=2, count=1, seed=0)
    >>> asked.context.count(asked.answer)
    2

    Raises InvalidValueError unless the facts and the questions fit.
    """
    writer, times, earlier = KINDS[kind]
    check_fit(tokens - _length(earlier) + QUESTION_LENGTH, facts * times)
    check_questions(facts, earlier + 1)
    return drawn(writer, kind, tokens=tokens, facts=facts, count=count, seed=seed)


def _length(earlier: int) -> int:
    """Return how many words the questions have, and the answers of all but the last."""
    return earlier * (QUESTION_LENGTH + CODE_LENGTH + 1) + QUESTION_LENGTH


def _about(document: Document, name: str) -> Asked:
    """Ask for the last code of a name that is told."""
    code = [fact.code for fact in document.facts if fact.name == name][-1]
    return Asked(
        context=" ".join(document.words), question=" ".join(question(name)), answer=" ".join(code)
    )
