"""One conversation, turn by turn."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from transformers import DynamicCache, PreTrainedModel

from kvpolicy.exactness.usages.inputs import (
    NEW_TOKENS,
    PROMPT,
    difference,
    generate,
    read,
    replayed,
    tokens,
)
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.policy import Policy


def one_prompt(model: PreTrainedModel, policy: Policy) -> float:
    """One prompt, then greedy decoding by `generate`."""
    return replayed(model, policy, lambda cache: generate(model, cache, tokens(1)))


def second_turn_by_generate(model: PreTrainedModel, policy: Policy) -> float:
    """A question asked by `generate(full history)` on the cache of the first answer."""

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
            model(input_ids=tokens(seed, length), position_ids=positions, past_key_values=cache)

    return replayed(model, policy, turns)


def five_turns(model: PreTrainedModel, policy: Policy) -> float:
    """Five long turns, each of them evicted again, with some decoding between."""
    return replayed(
        model, policy, lambda cache: read(model, cache, (PROMPT, 1, 40, 1, 33, 1, 50, 1, 27, 1, 1))
    )


def system_prompt_first(model: PreTrainedModel, policy: Policy) -> float:
    """A short prompt that is kept whole, and the long document in the second turn."""
    return replayed(model, policy, lambda cache: read(model, cache, (9, PROMPT, 1, 1)))


def chunked_prefill(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt read in chunks of 13 tokens; every chunk ends a prompt."""
    return replayed(
        model, policy, lambda cache: generate(model, cache, tokens(1), prefill_chunk_size=13)
    )


def after_crop(model: PreTrainedModel, policy: Policy) -> float:
    """Two tokens are taken back before another turn; as many recent ones are always kept."""
    if isinstance(policy.recent, int):
        policy = attrs.evolve(policy, recent=max(policy.recent, 2))

    def turns(cache: PolicyCache) -> None:
        read(model, cache, (PROMPT, 1, 1, 1))
        cache.crop(-2)
        read(model, cache, (6, 1), first_seed=10)

    return replayed(model, policy, turns)


def reset_and_reused(model: PreTrainedModel, policy: Policy) -> float:
    """A conversation after `reset`, against one on a new cache: equal bit for bit."""
    cache = policy.cache(model)
    read(model, cache, (PROMPT, 1, 9), first_seed=30)
    cache.reset()
    turns = (PROMPT, 1, 9, 1)
    return difference(read(model, cache, turns), read(model, policy.cache(model), turns))


def nothing_to_evict(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt within the budget against DynamicCache, which must be equal bit for bit."""
    if isinstance(policy.budget, float):
        policy = attrs.evolve(policy, budget=1.0)
    room = policy.positions(PROMPT)
    # What is decoded counts where it is evicted, too.
    decoded = min(NEW_TOKENS, room - 1) if policy.every else NEW_TOKENS
    prompt = min(PROMPT, room - decoded) if policy.every else min(PROMPT, room)
    turns = (prompt, *[1] * decoded)
    full = DynamicCache(config=model.config)
    return difference(read(model, policy.cache(model), turns), read(model, full, turns))
