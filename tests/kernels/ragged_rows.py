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


def extra(batch, kv_heads, dim, value_dim):
    """Return the key, the value and the bias of an extra row of each head; one head has none."""
    bias = torch.randn(batch, kv_heads) * 2
    bias[0, 0] = -torch.inf
    return torch.randn(batch, kv_heads, dim), torch.randn(batch, kv_heads, value_dim), bias


def named(row):
    """Return an extra row as arguments of `ragged_attention`."""
    return dict(zip(("extra_keys", "extra_values", "extra_bias"), row, strict=True))
