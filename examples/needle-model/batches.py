"""Training batches: repeated words at first, then documents with many questions."""

from __future__ import annotations

from random import Random

import attrs
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.evaluation.needle.prompts import BOS_LENGTH, SHORTEST
from kvpolicy.evaluation.needle.variants import VARIANTS, Variant
from kvpolicy.evaluation.needle.vocabulary import BOS, EOS, SPECIAL, STOP, vocabulary

IDS = {word: token for token, word in enumerate(vocabulary())}
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


def documents(
    rng: Random, *, tokens: int, count: int, farthest: int, variant: Variant = VARIANTS["single"]
) -> Batch:
    """Write documents, each with questions on as many of its facts as fit.

    In half of them positions jump ahead between sentences, up to `farthest`. So the model learns
    long distances from short texts.
    """
    answered = [_answered(rng, tokens, variant) for _ in range(count)]
    ids = torch.tensor([[IDS[word] for word in words] for words, _ in answered])
    recalled = torch.tensor([recalled for _, recalled in answered])
    return Batch(ids=ids, positions=_with_jumps(rng, ids, farthest), recalled=recalled)


def _answered(rng: Random, tokens: int, variant: Variant) -> tuple[list[str], list[bool]]:
    answer_length = variant.answer_length + 1  # the end of text as well
    exchange_length = variant.question_length + answer_length
    room = tokens - BOS_LENGTH - SHORTEST
    most = min(MOST_FACTS, (room - exchange_length) // variant.fact_length)
    facts = rng.randint(FEWEST_FACTS, most)
    asked = min(facts, (room - facts * variant.fact_length) // exchange_length)
    text = variant.write(rng, tokens=tokens - asked * exchange_length, facts=facts)
    words = [BOS, *text.words]
    recalled = [False] * len(words)
    for fact in rng.sample(text.facts, asked):
        words += (*fact.question, *fact.answer, EOS)
        recalled += [False] * variant.question_length + [True] * answer_length
    return words, recalled


def _with_jumps(rng: Random, ids: Int[Tensor, "B T"], farthest: int) -> Int[Tensor, "B T"]:
    count, tokens = ids.shape
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    jumping = torch.rand(count, 1, generator=generator) < 0.5
    distance = torch.rand(count, 1, generator=generator) * (farthest - tokens) * jumping
    starts = ids.roll(1, 1) == IDS[STOP]
    shares = (torch.rand(count, tokens, generator=generator) * starts).cumsum(1)
    return torch.arange(tokens) + (distance * shares / shares[:, -1:]).long()
