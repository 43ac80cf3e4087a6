import pytest
import torch

from kvpolicy_kernels import windowed_reconstruction_error
from kvpolicy_kernels.common.pytorch import blocks, logits

SHAPES = [(1, 1, 1, 1, 1, 4), (2, 6, 2, 5, 17, 8), (1, 4, 4, 9, 9, 16), (2, 8, 2, 12, 67, 24)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "window", "seq", "dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
projected = pytest.mark.parametrize("rank", [None, 3, "dim"], ids=["value_space", "low", "full"])


def make_factors(rank, heads, dim):
    return None if rank is None else torch.randn(heads, dim if rank == "dim" else rank, dim)


@pytest.mark.sampled(3, "seq", "dtype", "rank", "softcap", "normalize")
@shapes
@dtypes
@projected
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_matches_the_definition(
    batch, heads, kv_heads, window, seq, dim, dtype, rank, softcap, normalize,
    naive_logits, naive_odds, naive_norms,
):  # fmt: skip
    queries = torch.randn(batch, heads, window, dim).to(dtype)
    keys = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    values = torch.randn(batch, kv_heads, seq, dim + 1).to(dtype)
    weights, factors = torch.rand(window), make_factors(rank, heads, dim + 1)
    factors = torch.randn(heads, dim, dim + 1) if rank == "dim" else factors
    attention = naive_logits(queries, keys, 0.3, softcap).softmax(-1)
    output = attention @ values.double().repeat_interleave(heads // kv_heads, 1)
    norms = naive_norms(values, output, factors)
    if normalize:
        norms = norms / naive_norms(torch.zeros_like(values[:, :, :1]), output, factors)
    expected = torch.einsum("w,bhws->bhs", weights.double(), naive_odds(attention) * norms)
    if seq == 1:
        expected = torch.zeros_like(expected)  # The output is the only value.

    actual = windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=0.3, softcap=softcap, normalize=normalize,
    )  # fmt: skip

    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=1e-5)


@shapes
@projected
@pytest.mark.parametrize("normalize", [False, True])
def test_every_query_may_see_all_positions(
    batch, heads, kv_heads, window, seq, dim, rank, normalize
):
    queries, keys = torch.randn(batch, heads, window, dim), torch.randn(batch, kv_heads, seq, dim)
    values, weights = torch.randn(batch, kv_heads, seq, dim), torch.rand(window)
    given, options = (keys, values), {"scaling": 0.3, "normalize": normalize}
    factors = make_factors(rank, heads, dim)
    # The last query of a window sees all positions.
    alone = [
        windowed_reconstruction_error(query, *given, torch.ones(1), factors, **options)
        for query in queries.split(1, dim=2)
    ]
    expected = torch.einsum("w,wbhs->bhs", weights, torch.stack(alone))

    actual = windowed_reconstruction_error(
        queries, *given, weights, factors, **options, causal=False
    )

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(3, "seq", "dtype", "rank", "normalize")
@shapes
@dtypes
@projected
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sink_that_gives_nothing_takes_its_share(
    batch, heads, kv_heads, window, seq, dim, dtype, rank, normalize,
    naive_rows, naive_odds, naive_norms,
):  # fmt: skip
    queries = torch.randn(batch, heads, window, dim).to(dtype)
    keys, values = (torch.randn(batch, kv_heads, seq, dim).to(dtype) for _ in range(2))
    weights, factors = torch.rand(window), make_factors(rank, heads, dim)
    sinks = (torch.randn(heads) * 2).to(dtype)
    attention, _ = naive_rows(queries, keys, 0.3, 2.0, sinks=sinks)
    output = attention @ values.double().repeat_interleave(heads // kv_heads, 1)
    norms = naive_norms(values, output, factors)
    if normalize:
        norms = norms / naive_norms(torch.zeros_like(values[:, :, :1]), output, factors)
    expected = torch.einsum("w,bhws->bhs", weights.double(), naive_odds(attention) * norms)

    actual = windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=0.3, softcap=2.0, sinks=sinks, normalize=normalize,
    )  # fmt: skip

    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=1e-5)


def test_the_odds_of_a_position_give_what_a_head_with_a_sink_loses_without_it(naive_rows):
    queries, keys, values = torch.randn(1, 2, 1, 8), *torch.randn(2, 1, 1, 7, 8)
    sinks = torch.tensor([1.0, -1.0])
    rows, _ = naive_rows(queries, keys, 0.3, sinks=sinks)
    whole = rows @ values.double()
    lost = []
    for i in range(7):
        rest = [j for j in range(7) if j != i]
        without = naive_rows(queries, keys[:, :, rest], 0.3, sinks=sinks)[0]
        lost.append((without @ values[:, :, rest].double() - whole).norm(dim=-1)[..., 0])

    errors = windowed_reconstruction_error(
        queries, keys, values, torch.ones(1), None, scaling=0.3, sinks=sinks
    )

    torch.testing.assert_close(errors.double(), torch.stack(lost, -1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logit", [3.0, 18.0, 40.0])
def test_a_sink_is_worth_what_its_loss_costs_however_little_the_others_have(logit, naive_rows):
    keys, values = torch.randn(1, 1, 7, 8) / 9, torch.randn(1, 1, 7, 8)
    queries = torch.randn(1, 2, 1, 8) / 9
    keys[..., 2, 0], queries[..., 0] = logit, 1.0
    sinks = torch.tensor([-torch.inf, -2.0])
    rest = [0, 1, 3, 4, 5, 6]
    whole = naive_rows(queries, keys, 1.0, sinks=sinks)[0] @ values.double()
    without = naive_rows(queries, keys[:, :, rest], 1.0, sinks=sinks)[0]
    expected = (without @ values[:, :, rest].double() - whole).norm(dim=-1)[..., 0]

    errors = windowed_reconstruction_error(
        queries, keys, values, torch.ones(1), None, scaling=1.0, sinks=sinks
    )

    torch.testing.assert_close(errors[..., 2].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sink", [1e4, -1e4, 1e30, -torch.inf])
def test_takes_a_sink_of_any_size(sink):
    # No query sees one position alone: a sink would be all that is left without it.
    queries, keys, values = torch.randn(1, 2, 8, 8), *torch.randn(2, 1, 1, 9, 8)
    given = (queries, keys, values, torch.ones(8), None)
    errors = windowed_reconstruction_error(*given, scaling=0.3, sinks=torch.full([2], sink))
    if sink > 0:
        assert (errors == 0).all()
    else:
        plain = windowed_reconstruction_error(*given, scaling=0.3)
        torch.testing.assert_close(errors, plain, rtol=1e-4, atol=1e-4)


def test_takes_any_layout(layout):
    queries, keys, values = torch.randn(3, 2, 4, 9, 8)
    weights, factors = torch.rand(5), torch.randn(4, 8, 8)
    plain = windowed_reconstruction_error(
        queries[:, :, -5:], keys, values, weights, factors, scaling=0.3
    )
    viewed = windowed_reconstruction_error(
        layout(queries[:, :, -5:]), layout(keys), layout(values), weights, factors, scaling=0.3
    )
    torch.testing.assert_close(plain, viewed)


def test_a_window_that_attends_to_one_position_stays_finite():
    keys = torch.tensor([100.0, 0, 0]).view(1, 1, 3, 1)
    queries, zeros = torch.ones(1, 1, 2, 1), torch.zeros(1, 1, 3, 2)
    for normalize in (False, True):
        errors = windowed_reconstruction_error(
            queries, keys, zeros, torch.ones(2), None, scaling=10.0, normalize=normalize
        )
        assert errors.isfinite().all()


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    queries, keys, values = torch.randn(1, 4, 5, 8), *torch.randn(2, 1, 2, 33, 8)
    given = queries, keys, values, torch.ones(5), torch.randn(4, 8, 8)
    whole = windowed_reconstruction_error(*given, scaling=0.3)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 33 * 4)
    monkeypatch.setattr(blocks, "CACHED_BYTES", rows * 8 * 4)
    cut = windowed_reconstruction_error(*given, scaling=0.3)
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-4)


def test_a_sequence_ignores_its_batch_mates():
    queries, keys, values = torch.randn(3, 4, 5, 8), *torch.randn(2, 3, 2, 33, 8)
    shared = torch.ones(5), torch.randn(4, 8, 8)
    together = windowed_reconstruction_error(queries, keys, values, *shared, scaling=0.3)
    for b in (slice(0, 1), slice(1, 2), slice(2, 3)):
        alone = windowed_reconstruction_error(queries[b], keys[b], values[b], *shared, scaling=0.3)
        assert torch.equal(alone, together[b])


def test_shapes_that_do_not_fit_are_an_error(refused):
    queries, keys, ones = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4), torch.ones(3)
    with refused("differ in batch, heads or positions"):
        windowed_reconstruction_error(queries, keys, keys[:, :, :4], ones, None, scaling=1.0)
    with refused("do not fit a window of 3 queries"):
        windowed_reconstruction_error(queries, keys, keys, ones[:2], None, scaling=1.0)
    with refused("do not fit 2 heads of dim 4"):
        factors = torch.zeros(2, 4, 5)
        windowed_reconstruction_error(queries, keys, keys, ones, factors, scaling=1.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_each_sequence_may_have_weights_of_its_own(normalize):
    queries, keys, values = (
        torch.randn(2, 6, 5, 8),
        torch.randn(2, 2, 17, 8),
        torch.randn(2, 2, 17, 8),
    )
    weights, options = torch.rand(2, 5), {"scaling": 0.3, "normalize": normalize}
    together = windowed_reconstruction_error(queries, keys, values, weights, None, **options)
    for b in range(2):
        rows = (each[b : b + 1] for each in (queries, keys, values))
        alone = windowed_reconstruction_error(*rows, weights[b], None, **options)
        assert torch.equal(alone[0], together[b])
