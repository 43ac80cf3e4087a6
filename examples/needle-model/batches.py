"""Training batches: repeated words at first, then documents with many questions."""

from __future__ import annotations

from random import Random

import attrs
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.evaluation.needle.prompts import (
    BOS_LENGTH,
    CODE_LENGTH,
    FACT_LENGTH,
    QUESTION_LENGTH,
    SHORTEST,
    question,
    write_document,
)
from kvpolicy.evaluation.needle.vocabulary import BOS, EOS, SPECIAL, STOP, vocabulary

IDS = {word: token for token, word in enumerate(vocabulary())}
ANSWER_LENGTH = CODE_LENGTH + 1  # the end of text as well
EXCHANGE_LENGTH = QUESTION_LENGTH + ANSWER_LENGTH
FEWEST_FACTS, MOST_FACTS = 4, 64


@attrs.frozen(kw_only=True)
class Batch:
    """Token ids, the positions that the model is given, and which tokens it has to recall."""

    ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    recalled: Bool[Tensor, "B T"]


def repeated_words(rng: Random, *, tokens: int, count: int) -> Batch:
    """Repeat a few random words. The model can copy all but the first round.

    The length of a round is random, so that the model finds a word by the word before it, not by a
    fixed distance.
    """
    rounds = torch.tensor([[rng.randint(4, tokens // 2)] for _ in range(count)])
    known = range(len(SPECIAL), len(IDS))
    words = torch.tensor([rng.sample(known, tokens) for _ in range(count)])
    positions = torch.arange(tokens).expand(count, tokens)
    # Nothing tells when the first round ends, so the token after it cannot be known.
    return Batch(
        ids=words.gather(1, positions % rounds), positions=positions, recalled=positions > rounds
    )


def documents(rng: Random, *, tokens: int, count: int, farthest: int) -> Batch:
    """Write documents, each with questions on as many of its facts as fit.

    In half of them positions jump ahead between sentences, up to `farthest`. So the model learns
    long distances from short texts.
    """
    answered = [_answered(rng, tokens) for _ in range(count)]
    ids = torch.tensor([[IDS[word] for word in words] for words, _ in answered])
    recalled = torch.tensor([recalled for _, recalled in answered])
    return Batch(ids=ids, positions=_with_jumps(rng, ids, farthest), recalled=recalled)


def _answered(rng: Random, tokens: int) -> tuple[list[str], list[bool]]:
    room = tokens - BOS_LENGTH - SHORTEST
    facts = rng.randint(FEWEST_FACTS, min(MOST_FACTS, (room - EXCHANGE_LENGTH) // FACT_LENGTH))
    asked = min(facts, (room - facts * FACT_LENGTH) // EXCHANGE_LENGTH)
    document = write_document(rng, tokens=tokens - asked * EXCHANGE_LENGTH, facts=facts)
    words = [BOS, *document.words]
    recalled = [False] * len(words)
    for fact in rng.sample(document.facts, asked):
        words += (*question(fact.name), *fact.code, EOS)
        recalled += [False] * QUESTION_LENGTH + [True] * ANSWER_LENGTH
    return words, recalled


def _with_jumps(rng: Random, ids: Int[Tensor, "B T"], farthest: int) -> Int[Tensor, "B T"]:
    count, tokens = ids.shape
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    jumping = torch.rand(count, 1, generator=generator) < 0.5
    distance = torch.rand(count, 1, generator=generator) * (farthest - tokens) * jumping
    starts = ids.roll(1, 1) == IDS[STOP]
    shares = (torch.rand(count, tokens, generator=generator) * starts).cumsum(1)
    return torch.arange(tokens) + (distance * shares / shares[:, -1:]).long()
