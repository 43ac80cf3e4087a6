import pytest
import torch

from kvpolicy_kernels import backend, column_attention
from kvpolicy_kernels.column_attention import reference
from kvpolicy_kernels.common.pytorch import logits

SHAPES = [(1, 1, 1, 1, 1, 8), (2, 6, 2, 5, 9, 8), (1, 8, 1, 17, 17, 16), (2, 4, 4, 1, 40, 8)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "queries", "seq", "dim"), SHAPES)
both_ways = pytest.mark.parametrize("causal", [True, False])
softcaps = pytest.mark.parametrize("softcap", [None, 2.0])


def example(batch, heads, kv_heads, queries, seq, dim, dtype=torch.float32):
    query = torch.randn(batch, heads, queries, dim) * 3
    return query.to(dtype), torch.randn(batch, kv_heads, seq, dim).to(dtype)


@pytest.fixture
def naive(naive_logits):
    """The sums in float64, from the whole attention matrix."""

    def compute(queries, keys, scaling, softcap, causal):
        if causal:
            return naive_logits(queries, keys, scaling, softcap).softmax(-1).sum(2)
        each = (
            naive_logits(queries[:, :, q, None], keys, scaling, softcap)
            for q in range(queries.shape[2])
        )
        return sum(row.softmax(-1).sum(2) for row in each)

    return compute


@pytest.mark.sampled(3, "seq", "causal", "softcap", "dtype", "layout")
@shapes
@both_ways
@softcaps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_the_attention_of_all_queries(
    batch, heads, kv_heads, queries, seq, dim, causal, softcap, dtype, naive, layout
):
    query, keys = example(batch, heads, kv_heads, queries, seq, dim, dtype)

    sums = column_attention(
        layout(query), layout(keys), scaling=0.3, softcap=softcap, causal=causal
    )

    assert sums.dtype == torch.float32
    expected = naive(query, keys, 0.3, softcap, causal)
    torch.testing.assert_close(sums.double(), expected, rtol=2e-5, atol=1e-6)


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sink_takes_its_share_of_the_attention(
    batch, heads, kv_heads, queries, seq, dim, dtype, naive_rows
):
    query, keys = example(batch, heads, kv_heads, queries, seq, dim, dtype)
    sinks = (torch.randn(heads) * 3).to(dtype)
    rows, _ = naive_rows(query, keys, 0.3, 2.0, sinks=sinks)

    sums = column_attention(query, keys, scaling=0.3, softcap=2.0, sinks=sinks)

    torch.testing.assert_close(sums.double(), rows.sum(2), rtol=2e-5, atol=1e-6)


def test_a_sink_takes_its_share_where_all_see_all(naive_rows):
    query, keys = example(2, 6, 2, 5, 9, 8)
    sinks = torch.tensor([-1e4, -2, 0, 2, 4, 1e4])
    each = (naive_rows(query[:, :, q, None], keys, 0.3, sinks=sinks)[0] for q in range(5))

    sums = column_attention(query, keys, scaling=0.3, sinks=sinks, causal=False)

    torch.testing.assert_close(sums.double(), sum(each)[:, :, 0], rtol=2e-5, atol=1e-6)


@both_ways
def test_every_query_gives_away_one(causal):
    queries, keys = example(1, 6, 3, 30, 50, 8)
    sums = column_attention(queries, keys, scaling=1.0, causal=causal)
    torch.testing.assert_close(sums.sum(-1), torch.full((1, 6), 30.0))


@both_ways
@pytest.mark.parametrize("size", [1, 1000, 10_000])
def test_the_size_of_a_block_does_not_matter(size, causal, monkeypatch):
    queries, keys = example(2, 4, 2, 13, 20, 8)
    whole = column_attention(queries, keys, scaling=0.3, causal=causal)
    monkeypatch.setattr(logits, "LOGITS_BYTES", size)
    blockwise = column_attention(queries, keys, scaling=0.3, causal=causal)
    torch.testing.assert_close(blockwise, whole)


def test_more_queries_than_positions_are_an_error(refused):
    with refused("a window of 3 queries"):
        column_attention(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 4), scaling=1.0)


KERNEL_SHAPES = [
    *SHAPES,
    (1, 4, 2, 70, 130, 80),
    (2, 3, 1, 33, 100, 128),
    (1, 5, 5, 64, 64, 16),
    (1, 8, 2, 1, 700, 64),
]


@pytest.mark.sampled(3, "seq", "causal", "program_order")
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "queries", "seq", "dim"), KERNEL_SHAPES)
@both_ways
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_matches_the_reference(
    batch, heads, kv_heads, queries, seq, dim, causal, device
):
    query, keys = example(batch, heads, kv_heads, queries, seq, dim)
    expected = reference.column_attention(query, keys, scaling=0.3, causal=causal)

    sums = column_attention(query.to(device), keys.to(device), scaling=0.3, causal=causal)

    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.cpu(), expected, rtol=2e-5, atol=1e-6)


@both_ways
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_caps_logits(causal, device):
    queries, keys = example(1, 6, 2, 20, 100, 16)
    expected = reference.column_attention(queries, keys, scaling=0.3, softcap=2.0, causal=causal)

    sums = column_attention(
        queries.to(device), keys.to(device), scaling=0.3, softcap=2.0, causal=causal
    )

    torch.testing.assert_close(sums.cpu(), expected, rtol=2e-5, atol=1e-6)


@both_ways
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_in_the_kernel_a_sink_takes_its_share(causal, device):
    queries, keys = example(2, 6, 2, 20, 130, 16)
    sinks = torch.tensor([-1e4, -2, 0, 2, 4, 1e4])
    options = {"scaling": 0.3, "causal": causal}
    expected = reference.column_attention(queries, keys, sinks=sinks, **options)

    sums = column_attention(queries.to(device), keys.to(device), sinks=sinks.to(device), **options)

    torch.testing.assert_close(sums.cpu(), expected, rtol=2e-5, atol=1e-6)


@both_ways
@pytest.mark.usefixtures("triton_kernels")
def test_in_the_kernel_a_sequence_ignores_its_batch_mates(causal, device):
    queries, keys = (each.to(device) for each in example(3, 4, 2, 20, 130, 8))
    together = column_attention(queries, keys, scaling=0.3, causal=causal)
    alone = column_attention(queries[1:2], keys[1:2], scaling=0.3, causal=causal)
    assert torch.equal(alone[0], together[1])


@pytest.mark.sampled(3, "layout", "causal", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@both_ways
@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_takes_half_precision_and_any_layout(dtype, causal, layout, device):
    queries, keys = example(2, 6, 2, 20, 75, 80, dtype)
    expected = reference.column_attention(queries, keys, scaling=0.1, causal=causal)

    sums = column_attention(
        layout(queries).to(device), layout(keys).to(device), scaling=0.1, causal=causal
    )

    torch.testing.assert_close(sums.cpu(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter's numpy
@pytest.mark.parametrize("bad", [slice(0, 64), slice(70, 71), slice(85, 90)], ids=str)
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_a_key_that_is_not_a_number_spoils_all_that_its_queries_see(bad, device):
    queries, keys = example(1, 2, 1, 20, 100, 8)
    keys[0, 0, bad] = torch.nan
    expected = reference.column_attention(queries, keys, scaling=0.3)

    sums = column_attention(queries.to(device), keys.to(device), scaling=0.3)

    assert expected.isnan().all()
    assert sums.cpu().isnan().all()


@pytest.mark.usefixtures("triton_kernels")
def test_queries_and_keys_of_different_types_multiply_as_float32(device):
    queries, keys = example(1, 2, 1, 4, 9, 8)
    sums = column_attention(queries.half().to(device), keys.to(device), scaling=0.3)
    expected = reference.column_attention(queries.half(), keys, scaling=0.3)
    torch.testing.assert_close(sums.cpu(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.usefixtures("triton_kernels")
def test_what_the_kernel_does_not_take_runs_in_pytorch(device):
    queries, keys = (each.to(device) for each in example(1, 2, 1, 4, 9, 300))
    with pytest.warns(backend.KernelFallbackWarning, match="column_attention .* at most 256"):
        sums = column_attention(queries, keys, scaling=0.3)
    assert torch.equal(sums, reference.column_attention(queries, keys, scaling=0.3))
