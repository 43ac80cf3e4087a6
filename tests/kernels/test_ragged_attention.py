import pytest
import torch

from kvpolicy_kernels import chunking, ragged_attention
from kvpolicy_kernels.ragged_attention import reference

SHAPES = [
    (1, 1, 1, 1, 1, 4, 4),
    (2, 6, 2, 5, 9, 8, 8),
    (1, 8, 2, 1, 17, 16, 8),
    (3, 4, 4, 6, 6, 8, 8),
]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "tail", "dim", "value_dim"), SHAPES
)


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


def expected(query, keys, values, lengths, tail_keys, tail_values, scaling, softcap, padding):
    """One softmax for each query, every sum written out, in float64."""
    batch, heads, count, _ = query.shape
    group = heads // lengths.shape[1]
    first = lengths.flatten().cumsum(0).view(lengths.shape) - lengths
    result = torch.zeros(batch, heads, count, values.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            n = h // group
            own = slice(int(first[b, n]), int(first[b, n] + lengths[b, n]))
            for q in range(count):
                last = tail_keys.shape[2] - count + q + 1
                start = 0 if padding is None else int(padding[b])
                seen = torch.cat([keys[own], tail_keys[b, n, start:last]]).double()
                weighed = torch.cat([values[own], tail_values[b, n, start:last]]).double()
                logits = seen @ query[b, h, q].double() * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if len(seen):
                    result[b, h, q] = logits.softmax(0) @ weighed
    return result


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_matches_the_definition(
    batch, heads, kv_heads, queries, tail, dim, value_dim, dtype, softcap
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim, dtype)

    actual = ragged_attention(*given, scaling=0.3, softcap=softcap)

    assert actual.dtype == dtype
    tolerance = (
        {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
    )
    torch.testing.assert_close(actual.double(), expected(*given, 0.3, softcap, None), **tolerance)


def test_padding_in_the_tail_is_not_seen_and_sees_nothing():
    given = example(2, 4, 2, 5, 5, 8, 8)
    given[3][1] = 0  # a row that is padded has nothing before its tail
    rows = int(given[3].sum())
    given = (given[0], given[1][:rows], given[2][:rows], *given[3:])
    padding = torch.tensor([0, 3])

    actual = ragged_attention(*given, scaling=0.3, padding=padding)

    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, None, padding), rtol=2e-5, atol=2e-6
    )
    assert (actual[1, :, :3] == 0).all()


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_the_size_of_a_block_does_not_matter(size, monkeypatch):
    given = example(2, 4, 2, 7, 9, 8, 8)
    whole = ragged_attention(*given, scaling=0.3)
    monkeypatch.setattr(reference, "LOGITS_BYTES", size)

    torch.testing.assert_close(ragged_attention(*given, scaling=0.3), whole)
    assert size < chunking.LOGITS_BYTES


def test_queries_in_any_layout_give_the_same():
    given = example(2, 4, 2, 5, 9, 8, 8)
    transposed = given[0].transpose(1, 2).contiguous().transpose(1, 2)

    torch.testing.assert_close(
        ragged_attention(transposed, *given[1:], scaling=0.3),
        ragged_attention(*given, scaling=0.3),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: torch.ones(2, 3)}, "lengths"),
        ({3: torch.ones(2, 2).int()}, "add up to 4"),
        ({4: torch.ones(2, 2, 3, 8)}, "5 queries need as many keys"),
        ({0: torch.ones(2, 3, 5, 8)}, "3 query heads do not divide"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    given = list(example(2, 4, 2, 5, 9, 8, 8))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=message):
        ragged_attention(*given, scaling=0.3)
