"""Variants of needle tasks: what a text tells, how it asks for it, and what a model should say.

`single` is the task of the model that ships with kvpolicy. In `redundant` each fact is told three
times, so no telling is needed by itself. In `chained` an answer takes two facts: one says who is
beside whom, the other one's code.

A variant has sentences of its own, and a model trained on them; a kind
(`kvpolicy.evaluation.needle.kinds`) asks the model that ships, in the sentences it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.needle.asked import Asked, drawn
from kvpolicy.evaluation.needle.prompts import (
    BOS_LENGTH,
    CODE_LENGTH,
    FACT_LENGTH,
    QUESTION_LENGTH,
    SHORTEST,
    Sentence,
    among_filler,
    question,
    write_fact,
)
from kvpolicy.evaluation.needle.vocabulary import (
    CODE_WORDS,
    FACT,
    NAMES,
    QUESTION,
    STOP,
    WORDS,
)

VARIANT = "needle_variant"
"""The entry of a model's configuration that says for which variant of task it was trained."""


@attrs.frozen(kw_only=True)
class Told:
    """One fact: the sentences that tell it, how it is asked for, and the words of the answer."""

    sentences: tuple[Sentence, ...]
    question: tuple[str, ...]
    answer: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Text:
    """The words of a text without a question, and its facts in the order of their first words."""

    words: tuple[str, ...]
    facts: tuple[Told, ...]


@attrs.frozen(kw_only=True)
class Variant:
    """A task: how facts are told.

    Lengths are words: those of all sentences of a fact, of a question, and of an answer without the
    end of text. `names` is how many names a fact takes, and `tell` is given them.
    """

    name: str
    fact_length: int
    answer_length: int
    tell: Callable[[Random, Sequence[str]], Told] = attrs.field(repr=False)
    question_length: int = QUESTION_LENGTH
    names: int = 1

    def write(self, rng: Random, *, tokens: int, facts: int) -> Text:
        """Shuffle the sentences of `facts` facts among filler.

        `tokens` counts the beginning of text, `Text.words` does not. Raises InvalidValueError if
        the facts do not fit, or leave less room than the shortest filler sentence takes.

        >>> text = VARIANTS["chained"].write(Random(0), tokens=64, facts=3)
        >>> len(text.words), text.facts[0].question[:2], len(text.facts[0].answer)
        (63, ('question', 'beside'), 3)
        """
        room = tokens - BOS_LENGTH - facts * self.fact_length
        if facts < 1 or facts * self.names > len(NAMES) or room < 0 or 0 < room < SHORTEST:
            raise InvalidValueError(
                f"{facts} facts of variant {self.name!r} do not go into {tokens} tokens: a fact "
                f"takes {self.fact_length} tokens and {self.names} of {len(NAMES)} names, "
                f"and what is left must be 0 or at least {SHORTEST}."
            )
        chosen = rng.sample(NAMES, facts * self.names)
        told = [
            self.tell(rng, chosen[first : first + self.names])
            for first in range(0, len(chosen), self.names)
        ]
        facts_told = [sentence for fact in told for sentence in fact.sentences]
        sentences = among_filler(rng, facts_told, tokens=tokens)
        return Text(
            words=tuple(word for sentence in sentences for word in sentence),
            facts=tuple(sorted(told, key=lambda fact: sentences.index(fact.sentences[0]))),
        )

    def ask(self, rng: Random, tokens: int, facts: int) -> Asked:
        """Ask for one of the facts; `tokens` counts the question as well. Raises as `write`."""
        text = self.write(rng, tokens=tokens - self.question_length, facts=facts)
        fact = rng.choice(text.facts)
        return Asked(
            context=" ".join(text.words),
            question=" ".join(fact.question),
            answer=" ".join(fact.answer),
        )


def _single(rng: Random, names: Sequence[str]) -> Told:
    sentence = write_fact(rng, names[0])
    return Told(
        sentences=(sentence,), question=question(names[0]), answer=sentence[2 : 2 + CODE_LENGTH]
    )


TELLINGS = 3
STANDS = "stands"


def _redundant(rng: Random, names: Sequence[str]) -> Told:
    """Tell the same code three times, with another first word each time."""
    code = tuple(rng.sample(CODE_WORDS, 2))
    places = rng.sample(WORDS["WHERE"], TELLINGS)
    return Told(
        sentences=tuple((place, names[0], STANDS, *code, STOP) for place in places),
        question=(QUESTION, names[0], STANDS),
        answer=code,
    )


BESIDE = "beside"


def _chained(rng: Random, names: Sequence[str]) -> Told:
    """Tell in one sentence who is beside whom, and in another one the code of the second."""
    first, second = names
    code = tuple(rng.sample(CODE_WORDS, 2))
    return Told(
        sentences=((BESIDE, first, second, STOP), (FACT, second, *code, STOP)),
        question=(QUESTION, BESIDE, first),
        answer=(second, *code),
    )


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name="single", fact_length=FACT_LENGTH, answer_length=CODE_LENGTH, tell=_single),
        Variant(name="redundant", fact_length=TELLINGS * 6, answer_length=2, tell=_redundant),
        Variant(name="chained", fact_length=9, answer_length=3, tell=_chained, names=2),
    )
}
"""The tasks, by name."""


def write(variant: str, *, tokens: int, facts: int, count: int, seed: int) -> list[Asked]:
    """Write prompts of a variant, all `tokens` words long, with so many facts; see `VARIANTS`.

    >>> [asked] = write("redundant", tokens=64, facts=2, count=1, seed=0)
    >>> len(f"<s> {asked.text}".split()), len(asked.answer.split())
    (64, 2)

    Raises InvalidValueError unless the facts fit.
    """
    ask = VARIANTS[variant].ask
    return drawn(ask, variant, tokens=tokens, facts=facts, count=count, seed=seed)
