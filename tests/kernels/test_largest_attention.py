import pytest
import torch

from kvpolicy_kernels import largest_attention
from kvpolicy_kernels.common.pytorch import blocks, logits
from kvpolicy_kernels.largest_attention import reference

pytestmark = pytest.mark.usefixtures("form")

# Batch, query heads, key/value heads, queries, positions, channels.
SHAPES = [(2, 4, 2, 3, 70, 8), (1, 6, 2, 5, 131, 20), (1, 2, 2, 1, 2, 16), (1, 3, 1, 33, 90, 40)]


def example(batch, heads, kv_heads, window, positions, dim, dtype=torch.float32):
    queries = torch.randn(batch, heads, window, dim).to(dtype)
    return queries, torch.randn(batch, kv_heads, positions, dim).to(dtype)


def naive(rows, width, group):
    """All rows of attention [B H W S] at once, in float64."""
    window, past = rows.shape[2], rows.shape[3] - rows.shape[2]
    rows = rows[..., :past]
    padded = torch.nn.functional.pad(rows, (width // 2, width // 2))
    pooled = padded.unfold(-1, width, 1).mean(-1)
    pooled = pooled * (rows.sum(-1, keepdim=True) / pooled.sum(-1, keepdim=True))
    by_group = (rows.shape[1] // group, group * window, past)
    largest = pooled.reshape(-1, *by_group).amax(2)
    return largest, rows.reshape(-1, *by_group).mean(2)


def check(found, expected, tolerance=2e-6):
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-5, atol=tolerance)


@pytest.mark.sampled(3, "shape", "width", "dtype", "form")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_the_definition(shape, width, dtype, device, naive_logits):
    queries, keys = example(*shape, dtype=dtype)
    rows = naive_logits(queries, keys, 0.4).softmax(-1)
    found = largest_attention(queries.to(device), keys.to(device), width, scaling=0.4)
    check(found, naive(rows, width, shape[1] // shape[2]))


@pytest.mark.parametrize("width", [3, 67, 201])
def test_a_width_may_be_more_than_a_block_or_the_past(width, device, naive_logits):
    queries, keys = example(1, 2, 1, 2, 80, 8)
    rows = naive_logits(queries, keys, 1.0).softmax(-1)
    check(
        largest_attention(queries.to(device), keys.to(device), width, scaling=1.0),
        naive(rows, width, 2),
    )


def test_follows_softcaps_and_sinks(device, naive_rows):
    queries, keys = example(1, 4, 2, 3, 40, 8)
    sinks = torch.tensor([0.0, 3.0, -torch.inf, 1.0])
    rows, _ = naive_rows(queries, keys, 1.0, 2.0, sinks=sinks)
    found = largest_attention(
        queries.to(device), keys.to(device), 3, scaling=1.0, softcap=2.0, sinks=sinks.to(device)
    )
    check(found, naive(rows, 3, 2))


def test_takes_any_layout(layout, device, naive_logits):
    queries, keys = example(2, 2, 1, 3, 40, 16)
    rows = naive_logits(queries, keys, 0.5).softmax(-1)
    given = (layout(each).to(device) for each in (queries, keys))
    check(largest_attention(*given, 5, scaling=0.5), naive(rows, 5, 2))


@pytest.mark.parametrize("scale", [40.0, -40.0])
def test_a_window_or_a_past_that_is_hardly_seen_leaves_digits(scale, device, naive_logits):
    queries, keys = example(1, 1, 1, 3, 30, 4)
    queries[..., 0], keys[..., 0] = 1.0, 0.0
    keys[:, :, -3:, 0] = scale
    rows = naive_logits(queries, keys, 0.5).softmax(-1)
    found = largest_attention(queries.to(device), keys.to(device), 5, scaling=0.5)
    for actual, wanted in zip(found, naive(rows, 5, 1), strict=True):
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("program_order")
def test_what_is_not_written_is_not_read(device, monkeypatch, form, naive_logits):
    if form == "triton":
        own = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **k: own(*a, **k).fill_(torch.nan))
    queries, keys = example(1, 6, 2, 17, 90, 8)
    rows = naive_logits(queries, keys, 0.5).softmax(-1)
    found = largest_attention(queries.to(device), keys.to(device), 3, scaling=0.5)
    monkeypatch.undo()
    check(found, naive(rows, 3, 3))


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_the_size_of_a_block_does_not_matter(rows, form, monkeypatch):
    queries, keys = example(1, 4, 2, 5, 33, 8)
    whole = reference.largest_attention(queries, keys, 3, scaling=1.0)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 33 * 4)
    monkeypatch.setattr(blocks, "CACHED_BYTES", rows * 12 * 28)
    check(reference.largest_attention(queries, keys, 3, scaling=1.0), [x.double() for x in whole])


def test_what_cannot_be_is_refused(refused):
    with refused("a window of 3 queries leaves none of 3 positions"):
        largest_attention(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), 1, scaling=1.0)
    with refused("a width must be odd and at least 1, not 2"):
        largest_attention(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 3, 1), 2, scaling=1.0)
