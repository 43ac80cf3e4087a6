"""Uneven heads, as the tests of `ragged_attention` in PyTorch and in its kernel use them."""

import torch

SHAPES = [
    (1, 1, 1, 1, 1, 4, 4),
    (2, 6, 2, 5, 9, 8, 8),
    (1, 8, 2, 1, 17, 16, 8),
    (3, 4, 4, 6, 6, 8, 8),
]


def example(batch, heads, kv_heads, queries, tail, dim, value_dim, dtype=torch.float32):
    """Uneven prefixes, one of them empty, and a tail; the arguments of `ragged_attention`."""
    lengths = torch.randint(0, 12, (batch, kv_heads))
    lengths[-1, -1] = 0
    rows = int(lengths.sum())
    made = (
        torch.randn(batch, heads, queries, dim) * 3,
        torch.randn(rows, dim),
        torch.randn(rows, value_dim),
        torch.randn(batch, kv_heads, tail, dim),
        torch.randn(batch, kv_heads, tail, value_dim),
    )
    query, keys, values, tail_keys, tail_values = (each.to(dtype) for each in made)
    return query, keys, values, lengths, tail_keys, tail_values
