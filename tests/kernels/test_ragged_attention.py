import sys
from pathlib import Path

import pytest
import torch

from kvpolicy_kernels import ragged_attention
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.ragged_attention import reference

sys.path.insert(0, str(Path(__file__).parent))
from ragged_rows import SHAPES, example, extra, named

shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "tail", "dim", "value_dim"), SHAPES
)


def expected(
    query,
    keys,
    values,
    lengths,
    tail_keys,
    tail_values,
    scaling,
    softcap,
    padding,
    sinks=None,
    extra=None,
):
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
                if extra is not None:
                    seen = torch.cat([seen, extra[0][b, n, None].double()])
                    weighed = torch.cat([weighed, extra[1][b, n, None].double()])
                logits = seen @ query[b, h, q].double() * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if extra is not None:
                    logits[-1] += extra[2][b, n].double()
                if sinks is not None:
                    logits = torch.cat([logits, sinks[h, None].double()])
                    weighed = torch.nn.functional.pad(weighed, (0, 0, 0, 1))
                if (logits > -torch.inf).any():
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


@shapes
@pytest.mark.parametrize("size", [0.0, 3.0, 1e4])
def test_a_sink_takes_its_share_and_gives_nothing(
    batch, heads, kv_heads, queries, tail, dim, value_dim, size
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim)
    sinks = torch.randn(heads) * size

    actual = ragged_attention(*given, scaling=0.3, softcap=2.0, sinks=sinks)

    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, 2.0, None, sinks), rtol=2e-5, atol=2e-6
    )


@shapes
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_ragged_rows_may_have_a_bias(
    batch, heads, kv_heads, queries, tail, dim, value_dim, softcap
):
    query, keys, values, *rest = example(batch, heads, kv_heads, queries, tail, dim, value_dim)
    # A bias of log 3 weighs as much as three equal rows.
    lengths = rest[0]
    times = torch.randint(1, 4, (len(keys),))
    repeated = [each.repeat_interleave(times, 0) for each in (keys, values)]
    counts = [int(part.sum()) for part in times.split(lengths.flatten().tolist())]

    actual = ragged_attention(
        query, keys, values, *rest, scaling=0.3, softcap=softcap, ragged_bias=times.float().log()
    )

    given = query, *repeated, torch.tensor(counts).view_as(lengths), *rest[1:]
    wanted = expected(*given, 0.3, softcap, None)
    torch.testing.assert_close(actual.double(), wanted, rtol=2e-5, atol=2e-6)


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["plain", "softcap, sinks, padding"])
def test_an_extra_row_of_each_head_is_seen_with_its_bias(
    batch, heads, kv_heads, queries, tail, dim, value_dim, dtype, special
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim, dtype)
    row = extra(batch, kv_heads, dim, value_dim)
    softcap, sinks, padding = None, None, None
    if special:
        softcap, sinks, padding = 2.0, torch.randn(heads), torch.randint(0, tail + 1, (batch,))

    actual = ragged_attention(
        *given, scaling=0.3, softcap=softcap, sinks=sinks, padding=padding, **named(row)
    )

    tolerance = (
        {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
    )
    wanted = expected(*given, 0.3, softcap, padding, sinks, row)
    torch.testing.assert_close(actual.double(), wanted, **tolerance)


def test_a_bias_of_minus_infinity_is_no_row():
    given = example(2, 4, 2, 3, 7, 8, 8)
    row = extra(2, 2, 8, 8)
    row[2].fill_(-torch.inf)

    torch.testing.assert_close(
        ragged_attention(*given, scaling=0.3, **named(row)), ragged_attention(*given, scaling=0.3)
    )


def test_an_extra_row_needs_all_of_its_parts(refused):
    given = example(2, 4, 2, 3, 7, 8, 8)
    row = named(extra(2, 2, 8, 8))
    with refused("give all three or none"):
        ragged_attention(*given, scaling=0.3, extra_keys=row["extra_keys"])
    with refused("another number of biases"):
        ragged_attention(*given, scaling=0.3, ragged_bias=torch.zeros(len(given[1]) + 1))
    with refused(r"do not fit the \(2, 2\) heads"):
        ragged_attention(*given, scaling=0.3, **named(extra(2, 1, 8, 8)))


def test_a_query_that_sees_nothing_but_its_sink_gives_zeros():
    given = example(1, 2, 1, 4, 4, 8, 8)
    sinks, padding = torch.tensor([1.0, -torch.inf]), torch.tensor([3])
    given = (given[0], given[1][:0], given[2][:0], torch.zeros(1, 1, dtype=int), *given[4:])

    actual = ragged_attention(*given, scaling=0.3, sinks=sinks, padding=padding)

    assert (actual[:, :, :3] == 0).all()
    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, None, padding, sinks), rtol=2e-5, atol=2e-6
    )


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
    assert size < blocks.LOGITS_BYTES


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
        ({4: torch.ones(2, 2, 3, 8)}, "5 queries need .* which are 3"),
        ({0: torch.ones(2, 3, 5, 8)}, "3 query heads do not divide"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message, refused):
    given = list(example(2, 4, 2, 5, 9, 8, 8))
    for place, value in change.items():
        given[place] = value
    with refused(message):
        ragged_attention(*given, scaling=0.3)


def test_what_is_not_a_number_stays_in_its_head():
    given = example(2, 4, 2, 3, 5, 8, 8)
    given[3][:] = torch.tensor([[3, 2], [1, 4]])
    given = (given[0], torch.randn(10, 8), torch.randn(10, 8), *given[3:])
    whole = ragged_attention(*given, scaling=0.3)
    given[1][5] = torch.nan

    actual = ragged_attention(*given, scaling=0.3)

    assert actual[1, :2].isnan().all()
    torch.testing.assert_close(actual[0], whole[0])
    torch.testing.assert_close(actual[1, 2:], whole[1, 2:])


def test_doubles_are_attended_to_in_double_precision():
    draw = torch.Generator().manual_seed(0)
    queries, keys, values, prefix = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((1, 2, 1, 8), (1, 1, 3, 8), (1, 1, 3, 8), (2, 8))
    )
    found = ragged_attention(
        queries, prefix, prefix, torch.tensor([[2]]), keys, values, scaling=0.3, softcap=None
    )
    every_key, every_value = (torch.cat([prefix, each[0, 0]]) for each in (keys, values))
    expected = (queries @ every_key.mT * 0.3).softmax(-1) @ every_value
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
