"""Prompts of an exact length: facts scattered among filler sentences, and a question at the end."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeAlias

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.needle.vocabulary import (
    CODE_WORDS,
    FACT,
    NAMES,
    QUESTION,
    STOP,
    TEMPLATES,
    WORDS,
)

BOS_LENGTH = 1
CODE_LENGTH = 3
FACT_LENGTH = CODE_LENGTH + 3  # "password", the name, the code, the full stop
QUESTION_LENGTH = 3  # "question", "password", the name

FILLER = {len(template) + 1: template for template in TEMPLATES}
SHORTEST, TYPICAL, LONGEST = min(FILLER), 4, max(FILLER)

Sentence: TypeAlias = tuple[str, ...]
"""The words of a sentence, and the full stop."""


@attrs.frozen(kw_only=True)
class NeedlePrompt:
    """A text that ends in a question about one of its facts, and what a model should say.

    `facts` are the places of all sentences that could have been asked for, in reading order;
    `needle` is the one that was, and `answer_positions` are the words in it that answer. Places
    count the beginning-of-text token that the tokenizer adds, so that they index `input_ids` and
    the rows of a full cache.
    """

    text: str
    answer: str
    facts: tuple[range, ...]
    needle: range
    answer_positions: range


@attrs.frozen(kw_only=True)
class Fact:
    """A name, the words of its code, and the place of the sentence that tells them."""

    name: str
    code: tuple[str, ...]
    positions: range


@attrs.frozen(kw_only=True)
class Document:
    """The words of a text without a question, and its facts, in reading order."""

    words: tuple[str, ...]
    facts: tuple[Fact, ...]


def generate_prompts(
    *, tokens: int, facts: int, count: int, seed: int, questions: int = 1
) -> list[NeedlePrompt]:
    """Write prompts that are all `tokens` long and tell so many `facts`; equal seeds, equal texts.

    There are `count` texts without their question, and `questions` prompts, one after the other,
    with each.

    Raises InvalidValueError unless the facts and the question fit, and there is a fact for each
    question.

    >>> prompt, = generate_prompts(tokens=20, facts=2, count=1, seed=3)
    >>> words = ["<s>", *prompt.text.split()]
    >>> len(words), len(prompt.facts)
    (20, 2)
    >>> prompt.answer == " ".join(words[place] for place in prompt.answer_positions)
    True
    """
    check_fit(tokens, facts)
    check_questions(facts, questions)
    rng = Random(f"{tokens} tokens, {facts} facts, seed {seed}")
    found: list[NeedlePrompt] = []
    for _ in range(count):
        document = write_document(rng, tokens=tokens - QUESTION_LENGTH, facts=facts)
        found += [_prompt(document, fact) for fact in rng.sample(document.facts, questions)]
    return found


def most_facts(tokens: int) -> int:
    """Return how many facts a prompt of so many tokens can tell.

    >>> most_facts(100), most_facts(4096)
    (16, 128)
    """
    return max(0, min(len(NAMES), (tokens - BOS_LENGTH - QUESTION_LENGTH) // FACT_LENGTH))


def write_document(rng: Random, *, tokens: int, facts: int) -> Document:
    """Shuffle facts among filler; `tokens` counts the beginning of text, `words` does not."""
    told = [write_fact(rng, name) for name in rng.sample(NAMES, facts)]
    return document_of(rng, told, tokens=tokens)


def document_of(rng: Random, told: Sequence[Sentence], *, tokens: int) -> Document:
    """Shuffle sentences, which `write_fact` wrote, among filler."""
    sentences = among_filler(rng, told, tokens=tokens)
    return Document(
        words=tuple(word for sentence in sentences for word in sentence),
        facts=tuple(_facts_among(sentences)),
    )


def among_filler(rng: Random, told: Sequence[Sentence], *, tokens: int) -> list[Sentence]:
    """Return all sentences of a text that tells some, in an order by chance.

    `tokens` counts the beginning of text.
    """
    sentences = [*told, *write_filler(rng, tokens - BOS_LENGTH - sum(map(len, told)))]
    rng.shuffle(sentences)
    return sentences


def question(name: str) -> tuple[str, ...]:
    """Ask for the code of a name, which comes last, as it comes right before the code in a fact."""
    return (QUESTION, FACT, name)


def _prompt(document: Document, asked: Fact) -> NeedlePrompt:
    return NeedlePrompt(
        text=" ".join(document.words + question(asked.name)),
        answer=" ".join(asked.code),
        facts=tuple(fact.positions for fact in document.facts),
        needle=asked.positions,
        answer_positions=asked.positions[2 : 2 + CODE_LENGTH],
    )


def write_fact(rng: Random, name: str) -> Sentence:
    """Tell the code of a name, drawn at random."""
    return (FACT, name, *rng.sample(CODE_WORDS, CODE_LENGTH), STOP)


def _facts_among(sentences: list[Sentence]) -> list[Fact]:
    facts, start = [], BOS_LENGTH
    for sentence in sentences:
        stop = start + len(sentence)
        if sentence[0] == FACT:
            facts.append(Fact(name=sentence[1], code=sentence[2:-1], positions=range(start, stop)))
        start = stop
    return facts


def write_filler(rng: Random, room: int) -> list[Sentence]:
    """Write random sentences that take `room` words together."""
    sentences = []
    while room:
        length = room if room <= LONGEST else rng.randint(TYPICAL, min(LONGEST, room - SHORTEST))
        sentences.append(_sentence(rng, length))
        room -= length
    return sentences


def _sentence(rng: Random, length: int) -> Sentence:
    return (*(rng.choice(WORDS.get(slot, (slot,))) for slot in FILLER[length]), STOP)


def check_questions(facts: int, questions: int) -> None:
    """Raise InvalidValueError unless there is a fact for each question, and a question."""
    if not 1 <= questions <= facts:
        raise InvalidValueError(
            f"{questions} questions do not go with {facts} facts: ask for each fact at most once, "
            "and for one at least."
        )


def check_fit(tokens: int, facts: int) -> None:
    """Raise InvalidValueError unless so many facts and a question fit so many tokens."""
    if facts < 1:
        raise InvalidValueError(f"a prompt asks for a fact, but tells {facts}: ask for 1 or more.")
    if facts > most_facts(tokens):
        raise InvalidValueError(
            f"{facts} facts do not fit a prompt of {tokens} tokens, which can tell "
            f"{most_facts(tokens)}: a fact takes {FACT_LENGTH} tokens, the question and the "
            f"beginning of text {QUESTION_LENGTH + BOS_LENGTH}, and there are {len(NAMES)} names."
        )
    room = tokens - BOS_LENGTH - QUESTION_LENGTH - facts * FACT_LENGTH
    if 0 < room < SHORTEST:
        raise InvalidValueError(
            f"{facts} facts leave {room} of {tokens} tokens, and the shortest filler sentence "
            f"takes {SHORTEST}: ask for {tokens - room} or {tokens - room + SHORTEST} tokens."
        )
