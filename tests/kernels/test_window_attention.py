import pytest
import torch

from kvpolicy_kernels import window_attention
from kvpolicy_kernels.common.pytorch import blocks, logits

SHAPES = [(1, 1, 1, 1, 1, 4), (2, 6, 2, 5, 17, 8), (1, 4, 4, 9, 9, 16), (2, 8, 2, 32, 131, 24)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "window", "seq", "dim"), SHAPES)


def example(batch, heads, kv_heads, window, seq, dim, dtype=torch.float32):
    queries = torch.randn(batch, heads, window, dim).to(dtype) * 3
    keys = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    return queries, keys, torch.rand(window)


@pytest.mark.sampled(3, "seq", "dtype", "softcap", "layout")
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_matches_the_definition(
    batch, heads, kv_heads, window, seq, dim, dtype, softcap, layout, naive_logits
):
    queries, keys, weights = example(batch, heads, kv_heads, window, seq, dim, dtype)
    expected = naive_logits(queries, keys, 0.3, softcap)
    averaged = torch.einsum("bhws,w->bhs", expected.softmax(-1), weights.double())

    actual = window_attention(layout(queries), layout(keys), weights, scaling=0.3, softcap=softcap)

    assert actual.attention.dtype == actual.logsumexp.dtype == torch.float32
    torch.testing.assert_close(actual.attention.double(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(
        actual.logsumexp.double(), expected.logsumexp(-1), rtol=1e-5, atol=1e-5
    )


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_sink_takes_its_share_of_the_attention(
    batch, heads, kv_heads, window, seq, dim, dtype, softcap, naive_rows
):
    queries, keys, weights = example(batch, heads, kv_heads, window, seq, dim, dtype)
    sinks = (torch.randn(heads) * 3).to(dtype)
    rows, logsumexp = naive_rows(queries, keys, 0.3, softcap, sinks=sinks)

    actual = window_attention(queries, keys, weights, scaling=0.3, softcap=softcap, sinks=sinks)

    averaged = torch.einsum("bhws,w->bhs", rows, weights.double())
    torch.testing.assert_close(actual.attention.double(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(actual.logsumexp.double(), logsumexp, rtol=1e-5, atol=1e-5)
    assert actual.attention.dtype == actual.logsumexp.dtype == torch.float32


@shapes
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_every_query_may_see_all_positions(
    batch, heads, kv_heads, window, seq, dim, softcap, with_sinks, naive_logits
):
    queries, keys, weights = example(batch, heads, kv_heads, window, seq, dim)
    # The last query of a window sees all positions.
    rows = [naive_logits(query, keys, 0.3, softcap) for query in queries.split(1, dim=2)]
    expected, sinks = torch.cat(rows, 2), None
    if with_sinks:
        sinks = torch.randn(heads) * 3
        column = sinks.double()[:, None, None].expand(batch, heads, window, 1)
        expected = torch.cat([expected, column], -1)
    averaged = torch.einsum("bhws,w->bhs", expected.softmax(-1)[..., :seq], weights.double())

    actual = window_attention(
        queries, keys, weights, scaling=0.3, softcap=softcap, sinks=sinks, causal=False
    )

    torch.testing.assert_close(actual.attention.double(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(
        actual.logsumexp.double(), expected.logsumexp(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_the_size_of_a_block_does_not_matter_where_all_is_seen(rows, monkeypatch):
    queries, keys, weights = example(2, 6, 2, 5, 40, 8)
    whole = window_attention(queries, keys, weights, scaling=0.3, causal=False)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 40 * 4)
    actual = window_attention(queries, keys, weights, scaling=0.3, causal=False)
    for one, other in zip(whole, actual, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sink_may_be_of_any_size(naive_rows):
    queries, keys, weights = example(1, 5, 1, 4, 9, 8)
    sinks = torch.tensor([1e30, 1e4, -1e4, -1e30, -torch.inf])
    rows, logsumexp = naive_rows(queries, keys, 0.3, sinks=sinks)

    actual = window_attention(queries, keys, weights, scaling=0.3, sinks=sinks)

    averaged = torch.einsum("bhws,w->bhs", rows, weights.double())
    torch.testing.assert_close(actual.attention.double(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(actual.logsumexp.double(), logsumexp, rtol=1e-5, atol=1e-5)


def test_every_head_has_one_sink(refused):
    queries, keys, weights = example(1, 4, 2, 3, 9, 8)
    with refused(r"sinks \(2,\) do not fit 4 query heads"):
        window_attention(queries, keys, weights, scaling=0.3, sinks=torch.zeros(2))


@pytest.mark.parametrize("rows", [1, 3, 5, 10, 21])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    queries, keys, weights = example(2, 6, 2, 5, 40, 8)
    whole = window_attention(queries, keys, weights, scaling=0.3)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 40 * 4)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 7 * 8 * 4)
    for one, other in zip(
        whole, window_attention(queries, keys, weights, scaling=0.3), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_sequence_ignores_its_batch_mates():
    queries, keys, weights = example(3, 4, 2, 4, 33, 8)
    together = window_attention(queries, keys, weights, scaling=0.3)
    for b in range(3):
        alone = window_attention(queries[b : b + 1], keys[b : b + 1], weights, scaling=0.3)
        assert torch.equal(alone.attention[0], together.attention[b])
        assert torch.equal(alone.logsumexp[0], together.logsumexp[b])


@pytest.mark.parametrize("causal", [True, False])
def test_each_sequence_may_have_weights_of_its_own(causal):
    queries, keys, _ = example(3, 4, 2, 4, 33, 8)
    weights = torch.rand(3, 4)
    options = {"scaling": 0.3, "causal": causal}
    together = window_attention(queries, keys, weights, **options)
    for b in range(3):
        one = slice(b, b + 1)
        alone = window_attention(queries[one], keys[one], weights[b], **options)
        assert torch.equal(alone.attention[0], together.attention[b])
        assert torch.equal(alone.logsumexp[0], together.logsumexp[b])


def test_inputs_stay_as_they_are_even_when_they_carry_gradients():
    queries, keys, weights = example(1, 2, 1, 4, 9, 8)
    before = queries.clone(), keys.clone(), weights.clone()
    attention, _ = window_attention(queries.requires_grad_(), keys, weights, scaling=0.3)
    assert not attention.requires_grad
    assert torch.equal(queries, before[0])
    assert torch.equal(keys, before[1])
    assert torch.equal(weights, before[2])


@pytest.mark.parametrize(
    ("queries", "keys", "weights", "message"),
    [
        ((1, 3, 2, 4), (1, 2, 5, 4), 2, "3 query heads do not divide among 2"),
        ((1, 2, 6, 4), (1, 2, 5, 4), 6, "a window of 6 queries does not fit 5 positions"),
        ((1, 2, 2, 4), (1, 2, 5, 4), 3, r"weights \(3,\) do not fit a window of 2"),
        ((1, 2, 2, 4), (1, 2, 5, 4), (2, 2), r"weights \(2, 2\) do not fit .* in 1 sequences"),
        ((2, 2, 2, 4), (1, 2, 5, 4), 2, "differ in batch or head dim"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(queries, keys, weights, message, refused):
    with refused(message):
        window_attention(torch.zeros(queries), torch.zeros(keys), torch.zeros(weights), scaling=1.0)
