"""Which tokens of one prompt survive under each policy, and what the model then answers."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from kvpolicy.evaluation.caches import opened_cache, shares_held
from kvpolicy.evaluation.contenders import Contender
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.reader import Question, Reader


@attrs.frozen(kw_only=True)
class Survival:
    """What one policy kept of a prompt, and what the model then answered.

    `shares` gives, for every token of the prompt, the share of layers and key/value heads that
    still hold it.
    """

    name: str
    shares: tuple[float, ...]
    answer: str
    right: bool


@attrs.frozen(kw_only=True)
class Specimen:
    """One prompt, word by word, under the full cache and under every recipe at one budget.

    `facts` are the places of all sentences that could have been asked for, `asked` is the place of
    the answer among them.
    """

    words: tuple[str, ...]
    facts: tuple[range, ...]
    asked: range
    budget: int
    survivals: tuple[Survival, ...]


def survivals(
    reader: Reader, question: Question, contenders: Iterable[Contender]
) -> tuple[Survival, ...]:
    """Let every contender answer one question, and look at what its cache then holds."""
    return tuple(_survival(reader, question, contender) for contender in contenders)


def _survival(reader: Reader, question: Question, contender: Contender) -> Survival:
    with opened_cache(reader.model, contender.policy) as cache:
        (answer,) = reader.answer([question], cache)
        (shares,) = shares_held(cache, reader.encode([question]))
    return Survival(
        name=contender.name,
        shares=tuple(shares.tolist()),
        answer=answer,
        right=exact_match(answer, question.answer),
    )
