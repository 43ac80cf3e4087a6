"""Prompts, patterns and a policy, as several tests of sparse prefill use them."""

import attrs
import pytest
import torch
from transformers import DynamicCache

from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.prefill import AShape, VerticalSlash

A_SHAPE = AShape(sinks=3, local=8, block=16)
VERTICAL_SLASH = VerticalSlash(queries=9, columns=20, diagonals=8, sinks=3, local=5, block=16)
PATTERNS = pytest.mark.parametrize("pattern", [A_SHAPE, VERTICAL_SLASH], ids=["a", "vertical"])
POLICY = small_policy("snapkv")
LENGTH = 101


@attrs.frozen
class Everything:
    """A pattern that leaves nothing out, and does not say so."""

    block: int = 16
    dense_up_to: int = 0

    def choose(self, queries, keys, *, scaling, softcap=None):
        count = -(-keys.shape[2] // self.block)
        return torch.ones(*queries.shape[:2], count, count, dtype=torch.bool)


def padded(*lengths):
    mask = (torch.arange(LENGTH) >= LENGTH - torch.tensor(lengths)[:, None]).long()
    return tokens(4, LENGTH, len(lengths)) * mask, mask


def logits(model, cache, ids, mask=None):
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits


def full(model):
    return DynamicCache(config=model.config)
