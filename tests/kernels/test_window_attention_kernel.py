import pytest
import torch

from kvpolicy_kernels import window_attention
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.window_attention import reference

pytestmark = pytest.mark.usefixtures("triton_kernels")

# One row; groups that are no power of two, or fill several tiles; several tiles of queries; every
# query of a prompt, so that most tiles see a part of the positions only.
SHAPES = [
    (1, 1, 1, 1, 1, 4),
    (2, 6, 2, 5, 17, 8),
    (2, 8, 2, 32, 131, 80),
    (1, 6, 1, 40, 70, 128),
    (1, 4, 2, 150, 150, 8),
    (1, 150, 1, 1, 70, 16),
]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "window", "seq", "dim"), SHAPES, ids=str
)


def example(batch, heads, kv_heads, window, seq, dim, dtype=torch.float32):
    queries = torch.randn(batch, heads, window, dim).to(dtype) * 3
    keys = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    return queries, keys, torch.rand(window)


@pytest.mark.sampled(2, "window", "program_order")
@pytest.mark.parametrize(("window", "seq"), [(1, 70), (40, 70), (70, 70)])
@pytest.mark.usefixtures("program_order")
def test_in_the_kernels_every_query_may_see_all_positions(window, seq, device):
    queries, keys, weights = example(2, 6, 2, window, seq, 24)
    sinks = torch.randn(6)
    options = {"scaling": 0.3, "softcap": 2.0, "causal": False}
    expected = reference.window_attention(queries, keys, weights, sinks=sinks, **options)
    given = (each.to(device) for each in (queries, keys, weights))

    actual = window_attention(*given, sinks=sinks.to(device), **options)

    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_in_the_kernels_each_sequence_may_have_weights_of_its_own(layout, device):
    queries, keys, _ = example(2, 6, 2, 20, 70, 24)
    weights = torch.rand(2, 20) if layout == "rows" else torch.rand(20, 2).mT
    expected = reference.window_attention(queries, keys, weights, scaling=0.3)
    given = (each.to(device) for each in (queries, keys, weights))

    actual = window_attention(*given, scaling=0.3)

    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=2e-5, atol=1e-6)


@pytest.mark.sampled(5, "seq", "dtype", "program_order")
@shapes
@pytest.mark.parametrize(
    ("dtype", "softcap"),
    [(torch.float32, None), (torch.float32, 2.0), (torch.bfloat16, None), (torch.float16, 2.0)],
    ids=str,
)
@pytest.mark.usefixtures("program_order")
def test_the_kernels_match_the_definition(
    batch, heads, kv_heads, window, seq, dim, dtype, softcap, naive_logits, device
):
    queries, keys, weights = example(batch, heads, kv_heads, window, seq, dim, dtype)
    expected = naive_logits(queries, keys, dim**-0.5, softcap)
    averaged = torch.einsum("bhws,w->bhs", expected.softmax(-1), weights.double())

    actual = window_attention(
        queries.to(device), keys.to(device), weights.to(device), scaling=dim**-0.5, softcap=softcap
    )

    assert actual.attention.dtype == actual.logsumexp.dtype == torch.float32
    torch.testing.assert_close(actual.attention.double().cpu(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(
        actual.logsumexp.double().cpu(), expected.logsumexp(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.sampled(3, "seq", "dtype", "program_order")
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("program_order")
def test_in_the_kernels_a_sink_takes_its_share(
    batch, heads, kv_heads, window, seq, dim, dtype, naive_rows, device
):
    queries, keys, weights = example(batch, heads, kv_heads, window, seq, dim, dtype)
    sinks = (torch.randn(heads) * 3).to(dtype)
    rows, logsumexp = naive_rows(queries, keys, dim**-0.5, sinks=sinks)
    given = (each.to(device) for each in (queries, keys, weights))
    spread = torch.stack([sinks, sinks], 1).to(device)[:, 0]

    actual = window_attention(*given, scaling=dim**-0.5, sinks=spread)

    averaged = torch.einsum("bhws,w->bhs", rows, weights.double())
    torch.testing.assert_close(actual.attention.double().cpu(), averaged, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(actual.logsumexp.double().cpu(), logsumexp, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("program_order")
def test_in_the_kernels_a_sink_may_be_of_any_size(device):
    queries, keys, weights = example(1, 5, 1, 4, 190, 8)
    sinks = torch.tensor([1e30, 1e4, -1e4, -1e30, -torch.inf])
    expected = reference.window_attention(queries, keys, weights, scaling=0.3, sinks=sinks)
    given = (each.to(device) for each in (queries, keys, weights))

    actual = window_attention(*given, scaling=0.3, sinks=sinks.to(device))

    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=2e-5, atol=1e-7)


def test_the_kernels_take_any_layout(layout, device):
    queries, keys, weights = example(2, 6, 2, 5, 70, 24)
    expected = reference.window_attention(queries, keys, weights, scaling=0.3)
    strided = torch.stack([weights, weights], 1).to(device)[:, 0]
    actual = window_attention(
        layout(queries).to(device), layout(keys).to(device), strided, scaling=0.3
    )
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=2e-5, atol=1e-6)


def test_queries_and_keys_of_different_types_multiply_as_float32(device):
    queries, keys, weights = example(1, 2, 1, 3, 20, 40)
    keys = keys.half()
    expected = reference.window_attention(queries, keys, weights, scaling=0.2)
    actual = window_attention(queries.to(device), keys.to(device), weights.to(device), scaling=0.2)
    torch.testing.assert_close(expected.attention, actual.attention.cpu(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("programs", [1, 4, 1000])
@pytest.mark.usefixtures("program_order")
def test_how_positions_split_among_programs_does_not_matter(programs, monkeypatch, device):
    queries, keys, weights = (x.to(device) for x in example(1, 4, 2, 8, 200, 16))
    whole = window_attention(queries, keys, weights, scaling=0.3)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    for one, other in zip(
        whole, window_attention(queries, keys, weights, scaling=0.3), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_the_kernels_a_sequence_ignores_its_batch_mates(device):
    queries, keys, weights = (x.to(device) for x in example(3, 4, 2, 4, 130, 8))
    together = window_attention(queries, keys, weights, scaling=0.3)
    alone = window_attention(queries[1:2], keys[1:2], weights, scaling=0.3)
    assert torch.equal(alone.attention[0], together.attention[1])
    assert torch.equal(alone.logsumexp[0], together.logsumexp[1])


def test_the_kernels_give_a_sink_all_attention(naive_logits, device):
    queries, keys, weights = torch.ones(1, 2, 4, 8), torch.randn(1, 1, 90, 8), torch.full([4], 0.25)
    keys[:, :, 0] = 3
    expected = naive_logits(queries, keys, 1.0).softmax(-1).mean(2)
    actual = window_attention(queries.to(device), keys.to(device), weights.to(device), scaling=1.0)
    assert expected[..., 0].min() > 1 - 1e-6
    torch.testing.assert_close(actual.attention.cpu().double(), expected, rtol=2e-5, atol=0)


def test_a_large_logit_does_not_matter_where_it_is_not_seen(naive_logits, device):
    queries, keys, weights = torch.ones(1, 2, 4, 8), torch.randn(1, 1, 90, 8), torch.ones(4)
    keys[:, :, -1] = 40
    expected = naive_logits(queries, keys, 1.0).softmax(-1).sum(2)
    actual = window_attention(queries.to(device), keys.to(device), weights.to(device), scaling=1.0)
    torch.testing.assert_close(actual.attention.cpu().double(), expected, rtol=2e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_key_that_is_no_number_reaches_the_queries_that_see_it(poison, device):
    queries, keys, weights = torch.ones(1, 2, 6, 8), torch.randn(1, 1, 80, 8), torch.rand(6)
    keys[0, 0, 78] = poison
    actual = window_attention(queries.to(device), keys.to(device), weights.to(device), scaling=1.0)
    assert actual.logsumexp.cpu().isfinite().tolist() == [[[True] * 4 + [False] * 2] * 2]
    assert actual.attention.isnan().all()


@pytest.mark.sampled(3, "bad", "sink", "program_order")
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter's numpy
@pytest.mark.parametrize("sink", [None, 2.0, 1e4])
@pytest.mark.parametrize("bad", [slice(0, 64), slice(64, 128), slice(70, 71)], ids=str)
@pytest.mark.usefixtures("program_order")
def test_keys_that_are_no_numbers_are_not_lost_with_their_block(bad, sink, device, monkeypatch):
    monkeypatch.setattr(launch, "PROGRAMS", 1000)
    queries, keys, weights = (x.to(device) for x in example(2, 2, 1, 6, 130, 8))
    sinks = None if sink is None else torch.full([2], sink, device=device)
    whole = window_attention(queries, keys, weights, scaling=0.3, sinks=sinks)
    keys[1, 0, bad] = torch.nan

    actual = window_attention(queries, keys, weights, scaling=0.3, sinks=sinks)

    assert actual.attention[1].isnan().all()
    assert actual.logsumexp[1].isnan().all()
    assert torch.equal(actual.attention[0], whole.attention[0])
    assert torch.equal(actual.logsumexp[0], whole.logsumexp[0])


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_sink_that_is_no_number_spoils_its_head_alone(poison, device):
    queries, keys, weights = (x.to(device) for x in example(1, 3, 1, 4, 130, 8))
    whole = window_attention(queries, keys, weights, scaling=0.3)
    sinks = torch.tensor([-torch.inf, poison, -torch.inf], device=device)

    actual = window_attention(queries, keys, weights, scaling=0.3, sinks=sinks)

    assert actual.attention[:, 1].isnan().all()
    assert torch.equal(actual.attention[:, ::2], whole.attention[:, ::2])


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_key_that_no_query_can_match_gets_no_attention(device):
    queries, keys, weights = torch.ones(1, 2, 6, 8), torch.randn(1, 1, 80, 8), torch.rand(6)
    keys[0, 0, 78] = -torch.inf
    expected = reference.window_attention(queries, keys, weights, scaling=1.0)
    actual = window_attention(queries.to(device), keys.to(device), weights.to(device), scaling=1.0)
    assert (actual.attention[..., 78] == 0).all()
    torch.testing.assert_close(expected.attention, actual.attention.cpu(), rtol=2e-5, atol=0)


def test_what_the_kernels_do_not_take_runs_in_pytorch(device):
    queries, keys, weights = (x.to(device) for x in example(1, 2, 1, 3, 9, 300))
    with pytest.warns(KernelFallbackWarning, match="at most 256 channels, these have 300"):
        actual = window_attention(queries, keys, weights, scaling=0.1)
    expected = reference.window_attention(queries, keys, weights, scaling=0.1)
    assert torch.equal(actual.attention, expected.attention)
