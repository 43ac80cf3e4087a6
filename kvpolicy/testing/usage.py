"""Ways in which people use a cache, each measured against the masked full cache.

Every usage takes a model and a policy and returns the largest difference of any logit. Prompts are
random tokens; the same model, policy and usage always give the same figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvpolicy.compose import recipe as policy_of
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.policy import Policy
from kvpolicy.testing.exactness import max_logit_difference, recorded

Usage: TypeAlias = Callable[[PreTrainedModel, Policy], float]
PROMPT = 60
NEW_TOKENS = 8


def tokens(seed: int, length: int = PROMPT, batch: int = 1) -> Int[Tensor, "B T"]:
    """Return random tokens, none of which is special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 128, (batch, length), generator=generator)


def small_policy(recipe: str, **changes: Any) -> Policy:
    """Return a recipe with a budget of 24 and a window of at most 8, to fit prompts of 60 tokens.

    >>> small_policy("snapkv", sinks=2).scorer.window
    8
    """
    scorer = policy_of(recipe).to_dict()["scorer"]
    if isinstance(scorer.get("window"), int):
        scorer["window"] = min(scorer["window"], 8)
    return policy_of(recipe, **{"scorer": scorer, "budget": 24} | changes)


def one_prompt(model: PreTrainedModel, policy: Policy) -> float:
    """One prompt, then greedy decoding by `generate`."""
    return _replayed(model, policy, lambda cache: _generate(model, cache, tokens(1)))


def second_turn_by_generate(model: PreTrainedModel, policy: Policy) -> float:
    """A question asked by `generate(full history)` on the cache of the first answer."""

    def turns(cache: PolicyCache) -> None:
        answered = _generate(model, cache, tokens(1))
        _generate(model, cache, torch.cat([answered, tokens(2, 7)], 1))

    return _replayed(model, policy, turns)


def second_turn_by_forward(model: PreTrainedModel, policy: Policy) -> float:
    """Turns of 1, 5 and 40 tokens by forward, without position_ids."""

    def turns(cache: PolicyCache) -> None:
        for seed, length in enumerate((PROMPT, 1, 5, 40, 1)):
            model(input_ids=tokens(seed, length), past_key_values=cache)

    return _replayed(model, policy, turns)


def second_turn_with_position_ids(model: PreTrainedModel, policy: Policy) -> float:
    """Turns of 1, 5 and 40 tokens by forward, with position_ids."""

    def turns(cache: PolicyCache) -> None:
        for seed, length in enumerate((PROMPT, 1, 5, 40, 1)):
            first = cache.get_seq_length()
            positions = torch.arange(first, first + length)[None]
            model(input_ids=tokens(seed, length), position_ids=positions, past_key_values=cache)

    return _replayed(model, policy, turns)


def chunked_prefill(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt read in chunks of 13 tokens; every chunk ends a prompt."""
    return _replayed(
        model, policy, lambda cache: _generate(model, cache, tokens(1), prefill_chunk_size=13)
    )


def left_padded_batch(model: PreTrainedModel, policy: Policy) -> float:
    """Rows longer than, equal to and shorter than the budget, one of a single token."""
    ids, mask = _padded(_lengths(policy))
    return _replayed(model, policy, lambda cache: _generate(model, cache, ids, attention_mask=mask))


def second_turn_of_a_padded_batch(model: PreTrainedModel, policy: Policy) -> float:
    """A question to every row of a left-padded batch."""

    def turns(cache: PolicyCache) -> None:
        ids, mask = _padded(_lengths(policy))
        answered = _generate(model, cache, ids, attention_mask=mask)
        history = torch.cat([answered, tokens(3, 7, len(ids))], 1)
        more = mask.new_ones((len(ids), history.shape[1] - mask.shape[1]))
        _generate(model, cache, history, attention_mask=torch.cat([mask, more], 1))

    return _replayed(model, policy, turns)


def padded_row_alone(model: PreTrainedModel, policy: Policy) -> float:
    """Each row of a left-padded batch against the same prompt alone, several turns."""
    return _rows_alone(model, policy, _lengths(policy))


def long_padded_row_alone(model: PreTrainedModel, policy: Policy) -> float:
    """The same, where every row is longer than the budget and the first is not the longest."""
    return _rows_alone(model, policy, [PROMPT - 25, PROMPT, PROMPT - 12])


def interleaved_conversations(model: PreTrainedModel, policy: Policy) -> float:
    """Two conversations in turns on one model, each against itself alone."""
    both = (policy.cache(model), policy.cache(model))
    logits: list[list[Tensor]] = [[], []]
    for turn, length in enumerate((PROMPT, 1, 9, 1)):
        for who, cache in enumerate(both):
            ids = tokens(10 * who + turn, length)
            logits[who].append(model(input_ids=ids, past_key_values=cache).logits)
    differences = []
    for who in range(2):
        alone = policy.cache(model)
        for turn, length in enumerate((PROMPT, 1, 9, 1)):
            ids = tokens(10 * who + turn, length)
            expected = model(input_ids=ids, past_key_values=alone).logits
            differences.append(logits[who][turn] - expected)
    return _largest(differences)


def nothing_to_evict(model: PreTrainedModel, policy: Policy) -> float:
    """A prompt within the budget against DynamicCache, which must be equal bit for bit."""
    if isinstance(policy.budget, float):
        policy = attrs.evolve(policy, budget=1.0)
    room = policy.positions(PROMPT) - (NEW_TOKENS if policy.every else 0)
    prompt = tokens(1, min(PROMPT, room))
    cache, full = policy.cache(model), DynamicCache(config=model.config)
    differences = []
    for ids in (prompt, *tokens(2, NEW_TOKENS)[0].view(-1, 1, 1)):
        ours = model(input_ids=ids, past_key_values=cache).logits
        differences.append(ours - model(input_ids=ids, past_key_values=full).logits)
    return _largest(differences)


USAGES: Mapping[str, Usage] = {
    usage.__name__.replace("_", " "): usage
    for usage in (
        one_prompt,
        second_turn_by_generate,
        second_turn_by_forward,
        second_turn_with_position_ids,
        chunked_prefill,
        left_padded_batch,
        second_turn_of_a_padded_batch,
        padded_row_alone,
        long_padded_row_alone,
        interleaved_conversations,
        nothing_to_evict,
    )
}


def _replayed(model: PreTrainedModel, policy: Policy, use: Callable[[PolicyCache], Any]) -> float:
    cache = policy.cache(model)
    with recorded(model, cache) as calls:
        use(cache)
    return max_logit_difference(model, calls, cache)


def _generate(
    model: Any, cache: PolicyCache, ids: Int[Tensor, "B T"], **options: Any
) -> Int[Tensor, "B T"]:
    options = {"attention_mask": torch.ones_like(ids)} | options
    generated: Tensor = model.generate(
        ids,
        past_key_values=cache,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return generated


def _lengths(policy: Policy) -> list[int]:
    """Return lengths above, at and below the budget, the last a single token."""
    budget = policy.positions(PROMPT)
    return [PROMPT, PROMPT - 7, budget, budget // 2, 1]


def _padded(lengths: list[int]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    mask = (torch.arange(PROMPT) >= PROMPT - torch.tensor(lengths)[:, None]).long()
    return tokens(4, batch=len(lengths)) * mask, mask


def _rows_alone(model: PreTrainedModel, policy: Policy, lengths: list[int]) -> float:
    ids, mask = _padded(lengths)
    together = _last_logits(model, policy, ids, mask)
    differences = []
    for row, length in enumerate(lengths):
        alone = _last_logits(
            model, policy, ids[row : row + 1, -length:], torch.ones(1, length).long()
        )
        differences.append(together[row] - alone[0])
    return _largest(differences)


def _largest(differences: list[Tensor]) -> float:
    """Return the largest absolute difference, NaN if there is one."""
    return float(torch.stack([each.abs().max() for each in differences]).max())


def _last_logits(
    model: Any, policy: Policy, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> Float[Tensor, "B C V"]:
    """Return the last logits of a prompt, of decoded tokens and of two later turns."""
    cache, logits = policy.cache(model), []
    for turn, length in enumerate((0, 1, 1, 1, 6, 1, 9, 1)):
        if length:
            ids = tokens(20 + turn, length).expand(len(mask), -1)
            mask = torch.cat([mask, mask.new_ones((len(mask), length))], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits, 1)
