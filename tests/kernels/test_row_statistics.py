import pytest
import torch

from kvpolicy_kernels import row_statistics
from kvpolicy_kernels.common.pytorch import logits


def naive(logits, count):
    """Sort every row, lower positions first among equals; average what it sees of the best."""
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :count]
    seen = logits.gather(-1, order) > -torch.inf
    return (order * seen).sum(-1).double() / seen.sum(-1)


@pytest.mark.sampled(3, "count", "dtype", "softcap", "layout")
@pytest.mark.parametrize("count", [1, 7, 11, 12, 14, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_matches_the_definition(count, dtype, softcap, layout, naive_logits):
    queries, keys = torch.randn(2, 6, 5, 8).to(dtype), torch.randn(2, 2, 17, 8).to(dtype)
    expected = naive(naive_logits(queries, keys, 0.3, softcap), count)
    actual = row_statistics(layout(queries), layout(keys), count, scaling=0.3, softcap=softcap)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("count", [1, 3, 20, 30])
def test_of_equal_logits_the_lower_positions_count(count, naive_logits):
    queries = torch.randint(-1, 2, (2, 4, 3, 2)).float()
    keys = torch.randint(-1, 2, (2, 2, 31, 2)).float()
    expected = naive(naive_logits(queries, keys, 1.0), count)
    assert torch.equal(row_statistics(queries, keys, count, scaling=1.0), expected)


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    queries, keys = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 33, 8)
    whole = row_statistics(queries, keys, 30, scaling=1.0)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 33 * 4)
    assert torch.equal(row_statistics(queries, keys, 30, scaling=1.0), whole)


def test_positions_beyond_float32_are_summed_exactly():
    keys = torch.zeros(1, 1, 9000, 1)
    mean = row_statistics(torch.zeros(1, 1, 1, 1), keys, 8192, scaling=1.0)
    assert mean.item() == 8191 / 2


@pytest.mark.parametrize("count", [3, 12, 25, 40])
def test_what_is_no_number_is_never_among_the_largest(count, naive_logits):
    queries, keys = torch.randint(-1, 2, (1, 4, 3, 2)).float(), torch.randn(1, 2, 31, 2)
    keys[0, 0, ::3] = torch.nan
    lowest = naive_logits(queries, keys, 1.0).nan_to_num(-1e9)
    seen = torch.arange(31) <= torch.arange(28, 31)[:, None]
    expected = naive(lowest.masked_fill(~seen, -torch.inf), count)
    assert torch.equal(row_statistics(queries, keys, count, scaling=1.0), expected)


def test_a_count_below_one_is_an_error(refused):
    with refused("count must be at least 1, not 0"):
        row_statistics(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0, scaling=1.0)
