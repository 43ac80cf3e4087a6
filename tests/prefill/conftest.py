"""Random prompts, and the masks that patterns stand for, spelt out pair by pair."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def prompt():
    def random(seed, *, batch=1, heads=4, kv_heads=2, length=83, dim=8, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        # Queries this long make attention far from uniform.
        queries = torch.randn(batch, heads, length, dim, generator=generator) * 3
        keys, values = torch.randn(2, batch, kv_heads, length, dim, generator=generator)
        return queries.to(dtype), keys.to(dtype), values.to(dtype)

    return random


@pytest.fixture
def element_mask():
    def mask(blocks, length, block):
        """Which key each query attends to, by the definition: [b, h, S, S]."""
        allowed = torch.zeros(*blocks.shape[:2], length, length, dtype=torch.bool)
        for query in range(length):
            for key in range(query + 1):
                own = query // block == key // block
                allowed[:, :, query, key] = blocks[:, :, query // block, key // block] | own
        return allowed

    return mask
