import pytest
import torch

from kvpolicy_kernels import summed_rows
from kvpolicy_kernels.common.pytorch import blocks

pytestmark = pytest.mark.usefixtures("form")

# One row; no power of two; more rows than slots; slots that get nothing; wide rows.
SHAPES = [(1, 1, 1, 1, 1, 4), (2, 3, 17, 12, 5, 24), (1, 2, 150, 140, 3, 8), (1, 1, 9, 4, 30, 130)]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "length", "chosen", "count", "dim"), SHAPES, ids=str
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, length, chosen, count, dim, dtype=torch.float32):
    table = torch.randn(batch, heads, length, dim).to(dtype)
    rows = torch.rand(batch, heads, length).argsort(-1)[..., :chosen]
    slots = torch.randint(0, count, rows.shape)
    return table, rows, slots, torch.rand(rows.shape)


def naive(table, rows, slots, shares, count):
    sums = torch.zeros(*rows.shape[:2], count, table.shape[-1], dtype=torch.float64)
    for b, n, e in torch.cartesian_prod(*map(torch.arange, rows.shape)):
        if rows[b, n, e] < table.shape[2]:
            sums[b, n, slots[b, n, e]] += (
                shares[b, n, e].double() * table[b, n, rows[b, n, e]].double()
            )
    return sums


def found(device, table, rows, slots, shares, count, **options):
    on = (each.to(device) for each in (rows, slots, shares))
    tables = [table.to(device), table[..., :1].to(device)]
    wide, narrow = summed_rows(tables, *on, count=count, **options)
    torch.testing.assert_close(narrow, wide[..., :1], rtol=1e-12, atol=1e-14)
    return wide.cpu()


@pytest.mark.sampled(3, "length", "dtype", "program_order", "form")
@shapes
@dtypes
@pytest.mark.usefixtures("program_order")
def test_rows_are_added_to_their_slots(batch, heads, length, chosen, count, dim, dtype, device):
    given = example(batch, heads, length, chosen, count, dim, dtype)
    sums = found(device, *given, count)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, naive(*given, count), rtol=1e-12, atol=1e-14)


def test_slots_that_ascend_need_no_order(device):
    table, rows, slots, shares = example(2, 2, 60, 50, 7, 8)
    slots = slots.sort(-1).values
    sums = found(device, table, rows, slots, shares, 7, ascending=True)
    torch.testing.assert_close(sums, naive(table, rows, slots, shares, 7), rtol=1e-12, atol=1e-14)


def test_rows_that_do_not_exist_are_not_added(device):
    table, rows, slots, shares = example(1, 2, 20, 12, 4, 8)
    rows, shares = rows.clone(), shares.clone()
    rows[..., 9:], shares[..., 9:] = 20, 0.0
    sums = found(device, table, rows, slots, shares, 4)
    torch.testing.assert_close(sums, naive(table, rows, slots, shares, 4), rtol=1e-12, atol=1e-14)


def test_any_layout_is_taken(layout, device):
    table, *others = example(2, 2, 30, 20, 6, 16)
    sums = found(device, layout(table), *others, 6)
    torch.testing.assert_close(sums, naive(table, *others, 6), rtol=1e-12, atol=1e-14)


def test_without_rows_sums_are_zero(device):
    table, none = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 0, dtype=torch.long)
    sums = found(device, table, none, none, none.float(), 5)
    assert sums.shape == (1, 2, 5, 4)
    assert sums.count_nonzero() == 0


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    given = example(1, 2, 60, 50, 7, 8)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    torch.testing.assert_close(found(device, *given, 7), naive(*given, 7), rtol=1e-12, atol=1e-14)


def test_shapes_that_do_not_fit_are_an_error(refused):
    table, rows, slots, shares = example(1, 2, 6, 4, 3, 8)
    with refused("do not fit tables"):
        summed_rows([table], rows, slots[..., 1:], shares, count=3)
    with refused("do not fit tables"):
        summed_rows([table[:, :1]], rows, slots, shares, count=3)
    with refused("count must be at least 0"):
        summed_rows([table], rows, slots, shares, count=-1)
