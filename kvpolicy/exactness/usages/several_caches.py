"""Usages with several caches of one model: in turns, in threads, copied, saved, failed."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy import Policy, Selection, load
from kvpolicy.errors import CacheStateError, ComponentFailedError
from kvpolicy.exactness.usages.inputs import PROMPT, changed, difference, read, tokens
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

TURNS = (PROMPT, 1, 9, 1)


def interleaved_conversations(model: Any, policy: Policy) -> float:
    """Two conversations take turns on one model, each against itself alone."""
    both = (policy.cache(model), policy.cache(model))
    logits: list[list[Tensor]] = [[], []]
    for turn, length in enumerate(TURNS):
        for who, cache in enumerate(both):
            ids = tokens(10 * who + turn, length)
            logits[who].append(model(input_ids=ids, **handed(cache, to=model)).logits)
    return max(
        difference(logits[who], read(model, policy.cache(model), TURNS, first_seed=10 * who))
        for who in range(2)
    )


def four_threads(model: PreTrainedModel, policy: Policy) -> float:
    """Four conversations at once on one model, each against itself alone."""
    expected = [read(model, policy.cache(model), TURNS, first_seed=10 * who) for who in range(4)]

    def converse(who: int) -> list[Tensor]:
        with torch.no_grad():
            return read(model, policy.cache(model), TURNS, first_seed=10 * who)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(converse, range(4)))
    return max(difference(a, b) for a, b in zip(found, expected, strict=True))


def questions_to_clones(model: PreTrainedModel, policy: Policy) -> float:
    """Three questions to copies of one evicted context, each against that question alone."""
    context = policy.cache(model)
    read(model, context, (PROMPT, 1))
    answers = [
        read(model, context.clone(), (7, 1, 1), first_seed=10 + 10 * question)
        for question in range(3)
    ]
    differences = []
    for question, answer in enumerate(answers):
        alone = policy.cache(model)
        read(model, alone, (PROMPT, 1))
        expected = read(model, alone, (7, 1, 1), first_seed=10 + 10 * question)
        differences.append(difference(answer, expected))
    return max(differences)


def saved_and_loaded(model: PreTrainedModel, policy: Policy) -> float:
    """A conversation that goes on from a file, against the one that was saved."""
    cache = policy.cache(model)
    read(model, cache, (PROMPT, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache.safetensors")
        cache.save(path)
        loaded = load(path, model)
    turns = (1, 9, 1)
    return difference(
        read(model, loaded, turns, first_seed=10), read(model, cache, turns, first_seed=10)
    )


def after_a_failure(model: PreTrainedModel, policy: Policy) -> float:
    """A cache that is used before and after another one, whose policy raises in a prefill."""
    cache, broken = policy.cache(model), _failing(policy).cache(model)
    found = read(model, cache, TURNS[:2])
    _check_that_it_fails(model, broken)
    found += read(model, cache, TURNS[2:], first_seed=2)
    return difference(found, read(model, policy.cache(model), TURNS))


@attrs.frozen
class _FailingSelector:
    """Raises instead of selecting."""

    def select(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Raise."""
        raise ZeroDivisionError("on purpose")


def _failing(policy: Policy) -> Policy:
    return changed(policy, selector=_FailingSelector())


def _check_that_it_fails(model: PreTrainedModel, cache: PolicyCache) -> None:
    """Check that the failing forward and each later one raise, and say the reason."""
    for error, length in ((ComponentFailedError, PROMPT), (CacheStateError, 1)):
        try:
            read(model, cache, (length,))
        except error as raised:
            if "on purpose" not in str(raised):
                raise AssertionError(f"the error does not say the reason: {raised}") from raised
        else:
            raise AssertionError("a cache answered although its policy had failed")
