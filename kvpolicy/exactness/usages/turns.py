"""Usages of one cache in one conversation."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvpolicy import Policy
from kvpolicy.exactness.usages.inputs import (
    NEW_TOKENS,
    PROMPT,
    changed,
    difference,
    generate,
    read,
    replayed,
    tokens,
)
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed


def one_prompt(model: PreTrainedModel, policy: Policy) -> float:
    """One prompt, then greedy decoding by `generate`."""
    return replayed(model, policy, lambda cache: generate(model, cache, tokens(1)))


def second_turn_by_generate(model: PreTrainedModel, policy: Policy) -> float:
    """A second question by `generate`, which is given the whole history and the cache."""

    def turns(cache: PolicyCache) -> None:
        answered = generate(model, cache, tokens(1))
        generate(model, cache, torch.cat([answered, tokens(2, 7)], 1))

    return replayed(model, policy, turns)


def second_turn_by_forward(model: PreTrainedModel, policy: Policy) -> float:
    """Turns of 1, 5 and 40 tokens by forward, without position_ids."""
    return replayed(model, policy, lambda cache: read(model, cache, (PROMPT, 1, 5, 40, 1)))


def second_turn_with_position_ids(model: Any, policy: Policy) -> float:
    """Turns of 1, 5 and 40 tokens by forward, with position_ids."""

    def turns(cache: PolicyCache) -> None:
        for seed, length in enumerate((PROMPT, 1, 5, 40, 1)):
            first = cache.get_seq_length()
            positions = torch.arange(first, first + length)[None]
            model(input_ids=tokens(seed, length), position_ids=positions, **handed(cache, to=model))

    return replayed(model, policy, turns)


def five_turns(model: PreTrainedModel, policy: Policy) -> float:
    """Five long turns, each of which evicts again, with decoded tokens between them."""
    return replayed(
        model, policy, lambda cache: read(model, cache, (PROMPT, 1, 40, 1, 33, 1, 50, 1, 27, 1, 1))
    )


def system_prompt_first(model: PreTrainedModel, policy: Policy) -> float:
    """A first prompt within the budget, and a long document in the second turn."""
    return replayed(model, policy, lambda cache: read(model, cache, (9, PROMPT, 1, 1)))


def chunked_prefill(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt read in chunks of 13 tokens. Each chunk counts as a prompt of its own."""
    return replayed(
        model, policy, lambda cache: generate(model, cache, tokens(1), prefill_chunk_size=13)
    )


def after_crop(model: PreTrainedModel, policy: Policy) -> float:
    """Two tokens are taken back before another turn."""
    # A cache refuses to take back tokens that it may have evicted.
    if isinstance(policy.recent, int):
        policy = changed(policy, recent=max(policy.recent, 2))

    def turns(cache: PolicyCache) -> None:
        read(model, cache, (PROMPT, 1, 1, 1))
        cache.crop(-2)
        read(model, cache, (6, 1), first_seed=10)

    return replayed(model, policy, turns)


def reset_and_reused(model: PreTrainedModel, policy: Policy) -> float:
    """A conversation after `reset` against one on a new cache."""
    cache = policy.cache(model)
    read(model, cache, (PROMPT, 1, 9), first_seed=30)
    cache.reset()
    turns = (PROMPT, 1, 9, 1)
    return difference(read(model, cache, turns), read(model, policy.cache(model), turns))


def nothing_to_evict(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt within the budget, against transformers' DynamicCache."""
    if isinstance(policy.budget, float):
        policy = changed(policy, budget=1.0)
    room = policy.positions(PROMPT)
    # A policy that evicts while decoding counts decoded tokens as well.
    decoded = min(NEW_TOKENS, room - 1) if policy.every else NEW_TOKENS
    prompt = min(PROMPT, room - decoded) if policy.every else min(PROMPT, room)
    turns = (prompt, *[1] * decoded)
    full = DynamicCache(config=model.config)
    return difference(read(model, policy.cache(model), turns), read(model, full, turns))
