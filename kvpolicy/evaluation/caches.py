"""A policy's cache and transformers' full cache, opened and looked at in one way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from kvpolicy.cache.storage.protocol import AnyStorage
    from kvpolicy.named import Part
    from kvpolicy.policy import Policy
    from kvpolicy.prefill import PrefillPattern


@contextmanager
def opened_cache(
    model: PreTrainedModel,
    policy: Policy | None,
    prefill: Part[PrefillPattern] | None = None,
    storage: Part[AnyStorage] | None = None,
) -> Iterator[Cache]:
    """Give an empty cache of `policy`, or transformers' own full cache for None."""
    from transformers import DynamicCache

    from kvpolicy.huggingface.model.config import decoder_config

    if policy is None:
        yield DynamicCache(config=decoder_config(model))
    else:
        with policy.cache(model, prefill=prefill, storage=storage) as cache:
            yield cache


@contextmanager
def copied_cache(cache: Cache) -> Iterator[Cache]:
    """Give an independent copy of a cache: neither sees what the other is given."""
    from kvpolicy.huggingface.cache import PolicyCache

    if isinstance(cache, PolicyCache):
        with cache.clone() as twin:
            yield twin
    else:
        yield copy.deepcopy(cache)


def shares_held(cache: Cache, prompt: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return the share of layers and heads that hold each token of the prompt."""
    from kvpolicy.huggingface.cache import PolicyCache

    if not isinstance(cache, PolicyCache):
        return torch.ones(prompt.shape)
    held = [_shares_of_layer(each.cpu(), prompt.shape[1]) for each in cache.positions]
    return torch.stack(held).mean(0)


def _shares_of_layer(positions: Tensor, tokens: int) -> Float[Tensor, "B T"]:
    batch, heads, _ = positions.shape
    # Padding and the tokens of the answer land in the column that is cut off.
    column = positions.where((positions >= 0) & (positions < tokens), tokens)
    held = torch.zeros((batch, heads, tokens + 1)).scatter_(2, column, 1.0)
    return held[..., :tokens].mean(1)
