"""Usages with several rows: padded batches, samples, beams, repeated and reordered rows."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy import Policy
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages.inputs import PROMPT, generate, largest, padded, replayed, tokens
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed


def left_padded_batch(model: PreTrainedModel, policy: Policy) -> float:
    """A left-padded batch; rows are longer than, equal to and shorter than the budget."""
    ids, mask = padded(_lengths(policy))
    return replayed(model, policy, lambda cache: generate(model, cache, ids, attention_mask=mask))


def second_turn_of_a_padded_batch(model: PreTrainedModel, policy: Policy) -> float:
    """A question to each row of a left-padded batch, after the first answers."""

    def turns(cache: PolicyCache) -> None:
        ids, mask = padded(_lengths(policy))
        answered = generate(model, cache, ids, attention_mask=mask)
        history = torch.cat([answered, tokens(3, 7, len(ids))], 1)
        more = mask.new_ones((len(ids), history.shape[1] - mask.shape[1]))
        generate(model, cache, history, attention_mask=torch.cat([mask, more], 1))

    return replayed(model, policy, turns)


def padded_row_alone(model: PreTrainedModel, policy: Policy) -> float:
    """Each row of a left-padded batch against the same prompt alone, over several turns."""
    return _rows_alone(model, policy, _lengths(policy))


def long_padded_row_alone(model: PreTrainedModel, policy: Policy) -> float:
    """The same, but each row is longer than the budget, and the first is not the longest."""
    return _rows_alone(model, policy, [PROMPT - 25, PROMPT, PROMPT - 12])


def sampling(model: PreTrainedModel, policy: Policy) -> float:
    """Two sampled answers to each of two prompts."""
    ids = tokens(5, batch=2)

    def draw(cache: PolicyCache) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generate(model, cache, ids, do_sample=True, num_return_sequences=2)

    return replayed(model, policy, draw)


def beam_search(model: PreTrainedModel, policy: Policy) -> float:
    """Three beams for each of two prompts, one of which is padded."""
    ids, mask = padded([PROMPT, PROMPT - 11])
    return replayed(
        model,
        policy,
        lambda cache: generate(model, cache, ids, attention_mask=mask, num_beams=3),
    )


def repeated_rows(model: Any, policy: Policy) -> float:
    """Two questions to each of two prompts: rows are repeated after they were evicted."""

    def turns(cache: PolicyCache) -> None:
        model(input_ids=tokens(5, batch=2), **handed(cache, to=model))
        cache.batch_repeat_interleave(2)
        for turn, length in enumerate((5, 1, 40, 1)):
            model(input_ids=tokens(6 + turn, length, 4), **handed(cache, to=model))

    return replayed(model, policy, turns)


def chosen_and_reordered_rows(model: Any, policy: Policy) -> float:
    """Rows of a batch are put in another order, and one of them is dropped."""

    def turns(cache: Any) -> None:
        model(input_ids=tokens(5, batch=3), **handed(cache, to=model))
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        model(input_ids=tokens(6, 5, 3), **handed(cache, to=model))
        cache.batch_select_indices(torch.tensor([2, 1]))
        for turn, length in enumerate((1, 40, 1)):
            model(input_ids=tokens(7 + turn, length, 2), **handed(cache, to=model))

    return replayed(model, policy, turns)


def _lengths(policy: Policy) -> list[int]:
    """Return lengths above, at and below the budget; the last is a single token."""
    budget = policy.positions(PROMPT)
    return [PROMPT, PROMPT - 7, budget, budget // 2, 1]


def _rows_alone(model: PreTrainedModel, policy: Policy, lengths: list[int]) -> float:
    """Return the difference in the model's precision; in float64 if the limit is exceeded.

    Of two scores that are equal but for rounding, a row of a batch may keep one position, and the
    same row alone the other. In float64 they keep the same. A row that is read, scored or cut
    otherwise because of its padding differs in both.
    """
    found = _apart(model, policy, lengths)
    # A NaN is above no limit, and stays.
    if not found > LIMIT or model.dtype != torch.float32:
        return found
    try:
        return _apart(deepcopy(model).double(), policy, lengths)
    except RuntimeError:  # a model may hold float32 numbers that are no parameters
        return found


def _apart(model: PreTrainedModel, policy: Policy, lengths: list[int]) -> float:
    ids, mask = padded(lengths)
    together = _last_logits(model, policy, ids, mask)
    differences = []
    for row, length in enumerate(lengths):
        alone = _last_logits(
            model, policy, ids[row : row + 1, -length:], torch.ones(1, length).long()
        )
        differences.append(together[row] - alone[0])
    return largest(differences)


def _last_logits(
    model: Any, policy: Policy, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> Float[Tensor, "B C V"]:
    """Return the last logits of each forward: a prompt, decoded tokens and two later turns."""
    cache, logits = policy.cache(model), []
    for turn, length in enumerate((0, 1, 1, 1, 6, 1, 9, 1)):
        if length:
            ids = tokens(20 + turn, length).expand(len(mask), -1)
            mask = torch.cat([mask, mask.new_ones((len(mask), length))], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, **handed(cache, to=model)
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits, 1)
