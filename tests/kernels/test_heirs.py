import pytest
import torch

from kvpolicy_kernels import heirs, inherited_values
from kvpolicy_kernels.common.pytorch import blocks

pytestmark = pytest.mark.usefixtures("form")

# Batch, heads, positions, rows that the heads keep, most heirs, channels.
SHAPES = [
    (1, 1, 2, (1,), 1, 4), (2, 3, 17, (5, 1, 9), 4, 24), (1, 2, 300, (3, 40), 7, 8),
    (1, 1, 40, (30,), 100, 130), (1, 2, 12, (0, 4), 2, 8),
]  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def example(batch, heads, length, keeps, most, dim, dtype=torch.float32):
    """Rows of each head, attention, draws, values and kept values; fillers are `length`."""
    kept = torch.full((batch, heads, max(keeps)), length)
    evicted = torch.full((batch, heads, length - min(keeps)), length)
    for b in range(batch):
        for n, count in enumerate(keeps):
            order = torch.randperm(length)
            kept[b, n, :count] = order[:count].sort().values
            evicted[b, n, : length - count] = order[count:].sort().values
    attention, draws = torch.rand(2, batch, heads, length)
    values = torch.randn(batch, heads, length, dim).to(dtype)
    return attention, draws, kept, evicted, values


def rows_of(kept, length):
    return [row for row in kept.tolist() if row < length]


def naive(attention, draws, kept, evicted, most):
    """The share of every evicted row and its heirs, in float64."""
    length, found = attention.shape[2], torch.zeros(evicted.shape, dtype=torch.float64)
    for b, n, e in torch.cartesian_prod(*map(torch.arange, evicted.shape)):
        row, a = int(evicted[b, n, e]), attention[b, n].double()
        mine = [j for j in rows_of(kept[b, n], length) if j > row][:most]
        if row < length and mine and draws[b, n, row] < a[row] / a[mine].mean():
            found[b, n, e] = 1 / len(mine)
    return found


def naive_sums(kept, evicted, values, shares, most):
    """The kept values with every share added, one after another, in float64."""
    length = values.shape[2]
    index = kept.clamp(max=length - 1)[..., None].expand(-1, -1, -1, values.shape[3])
    total = values.double().gather(2, index)
    for b, n, e in torch.cartesian_prod(*map(torch.arange, evicted.shape)):
        if (row := int(evicted[b, n, e])) < length:
            behind = [k for k, j in enumerate(rows_of(kept[b, n], length)) if j > row]
            for slot in behind[:most]:
                total[b, n, slot] += shares[b, n, e] * values[b, n, row].double()
    return total


def both(device, attention, draws, kept, evicted, values, most):
    first, shares = heirs(*(x.to(device) for x in (attention, draws, kept, evicted)), most)
    index = kept.clamp(max=values.shape[2] - 1)[..., None].expand(-1, -1, -1, values.shape[3])
    kept_values = values.gather(2, index).to(device)
    sums = inherited_values(kept_values, values.to(device), evicted.to(device), first, shares, most)
    return first.cpu(), shares.cpu(), sums.cpu()


@pytest.mark.sampled(3, "shape", "dtype", "program_order", "form")
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("program_order")
def test_evicted_values_are_shared_among_their_heirs(shape, dtype, device):
    attention, draws, kept, evicted, values = example(*shape, dtype)
    most = shape[4]
    first, shares, sums = both(device, attention, draws, kept, evicted, values, most)
    expected = naive(attention, draws, kept, evicted, most)
    assert (first.dtype, shares.dtype, sums.dtype) == (torch.int32, torch.float32, dtype)
    assert ((first >= 0) & (first < kept.shape[2])).all()
    torch.testing.assert_close(shares.double(), expected, rtol=1e-6, atol=0)
    wanted = naive_sums(kept, evicted, values, expected, most).to(dtype)
    wanted[kept == shape[2]] = sums[kept == shape[2]]
    assert sums.isfinite().all()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(sums, wanted, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("own", [0.0, 1e-30])
def test_heirs_without_attention_inherit_what_has_some(own, device):
    attention = torch.tensor([[[own, 0.0, 0.0]]], device=device)
    draws = torch.full((1, 1, 3), 0.999, device=device)
    kept, evicted = (torch.tensor([[rows]], device=device) for rows in ([1, 2], [0]))
    assert heirs(attention, draws, kept, evicted, 2).shares.item() == (0.5 if own else 0)


def test_attention_that_is_no_number_merges_nothing(device):
    attention = torch.full((1, 1, 3), torch.nan, device=device)
    kept, evicted = (torch.tensor([[rows]], device=device) for rows in ([1, 2], [0]))
    assert heirs(attention, attention * 0, kept, evicted, 2).shares.item() == 0


def test_any_layout_is_taken(layout, device):
    attention, draws, kept, evicted, values = example(2, 2, 30, (6, 9), 4, 16)
    attention = attention.transpose(0, 1).contiguous().transpose(0, 1)
    draws = draws[:1].expand(2, -1, -1)
    _, shares, sums = both(device, attention, draws, kept, evicted, layout(values), 4)
    expected = naive(attention, draws, kept, evicted, 4)
    torch.testing.assert_close(shares.double(), expected, rtol=1e-6, atol=0)
    wanted = naive_sums(kept, evicted, values, expected, 4).float()
    torch.testing.assert_close(sums[:, 0, :6], wanted[:, 0, :6], rtol=1e-6, atol=1e-6)


def test_a_sequence_ignores_its_batch_mates(device):
    given, one = example(3, 2, 30, (6, 9), 4, 16), slice(1, 2)
    for together, alone in zip(
        both(device, *given, 4), both(device, *(each[one] for each in given), 4), strict=True
    ):
        assert torch.equal(together[one], alone)


def test_without_evicted_rows_values_stay(device):
    _, _, _, _, values = example(1, 1, 6, (6,), 4, 8)
    none, kept = torch.zeros(1, 1, 0).long(), torch.arange(6).view(1, 1, 6)
    attention, draws = torch.rand(2, 1, 1, 6)
    _, shares, sums = both(device, attention, draws, kept, none, values, 3)
    assert shares.shape == (1, 1, 0)
    assert torch.equal(sums, values)


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    given = example(1, 2, 60, (9, 12), 4, 16)
    whole = both(device, *given, 4)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    for one, other in zip(whole, both(device, *given, 4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_arguments_that_do_not_fit_are_an_error(refused):
    attention, draws, kept, evicted, values = example(1, 2, 12, (3, 4), 2, 8)
    with refused("do not fit"):
        heirs(attention, draws[..., 1:], kept, evicted, 2)
    with refused("most must be at least 1, not 0"):
        heirs(attention, draws, kept, evicted, 0)
    with refused("at least one row must be kept"):
        heirs(attention, draws, kept[..., :0], evicted, 2)
    first, shares = heirs(attention, draws, kept, evicted, 2)
    with refused("do not fit"):
        inherited_values(values[:, :, :4], values, evicted, first[..., 1:], shares, 2)
    with refused("most must be at least 1, not 0"):
        inherited_values(values[:, :, :4], values, evicted, first, shares, 0)
