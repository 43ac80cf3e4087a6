"""How likely a model finds tokens that go on from a context, over what a policy kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.policy import Policy


def logits_of_continuations(
    model: PreTrainedModel,
    policy: Policy,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> list[Float[Tensor, "F V"]] | None:
    """Return the logits before each token of each continuation; None if nothing was evicted.

    The context is read once, but for its last token, and evicted. The last token and each
    continuation are then read from copies of the evicted cache. A policy that evicts while it
    decodes reads a continuation token by token, and evicts meanwhile.
    """
    with policy.cache(model) as cache:
        ids = torch.tensor([context])
        if len(context) > 1:
            _read(model, cache, ids[:, :-1], logits_to_keep=1)
        first = _read(model, cache, ids[:, -1:])
        whole = _holds_all(cache)
        if whole and policy.every is None:
            return None
        found = []
        for tokens in continuations:
            with cache.clone() as twin:
                step = 1 if policy.every else max(1, len(tokens))
                rest = torch.tensor([tokens[:-1]]).long()
                pieces = [piece for piece in rest.split(step, dim=1) if piece.shape[1]]
                found.append(torch.cat([first, *(_read(model, twin, each) for each in pieces)]))
                whole &= _holds_all(twin)
        return None if whole else found


def logits_of_stream(
    model: PreTrainedModel, policy: Policy, ids: Sequence[int], *, chunk: int
) -> Float[Tensor, "F V"] | None:
    """Return the logits before each token of a text but the first; None if nothing was evicted.

    The text is read `chunk` tokens at a time, with an eviction after each.
    """
    if chunk == 1:
        policy = attrs.evolve(policy, every=1)
    with policy.cache(model) as cache:
        pieces = torch.tensor([ids[:-1]]).split(chunk, dim=1)
        found = torch.cat([_read(model, cache, piece) for piece in pieces])
        return None if _holds_all(cache) else found


def _read(
    model: PreTrainedModel, cache: PolicyCache, ids: Int[Tensor, "1 Q"], **options: Any
) -> Float[Tensor, "kept V"]:
    logits: Tensor = model(
        input_ids=ids.to(model.device), **handed(cache, to=model), **options
    ).logits[0]
    return logits


def _holds_all(cache: PolicyCache) -> bool:
    return all(layer.mean_held == layer.seen for layer in cache.policy_layers)
