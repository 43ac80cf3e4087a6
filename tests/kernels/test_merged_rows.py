import pytest
import torch

from kvpolicy_kernels import merged_rows
from kvpolicy_kernels.common.pytorch import blocks

pytestmark = pytest.mark.usefixtures("form")

# One row; no power of two; more rows than slots; slots that get nothing; wide rows.
SHAPES = [(1, 1, 1, 1, 1, 4), (2, 3, 17, 12, 5, 24), (1, 2, 150, 140, 3, 8), (1, 1, 9, 4, 30, 130)]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "length", "chosen", "count", "dim"), SHAPES, ids=str
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# Whether shares and counts are numbers.
WAYS = [(False, False), (False, True), (True, True), (True, False)]


def example(batch, heads, length, chosen, count, dim, dtype=torch.float32):
    kept, table = (torch.randn(batch, heads, size, dim).to(dtype) for size in (count, length))
    rows = torch.rand(batch, heads, length).argsort(-1)[..., :chosen]
    return kept, table, rows, torch.randint(0, count, rows.shape)


def weights(rows, length, alike):
    exists = rows < length
    shares, counts = (torch.rand(rows.shape) * exists for _ in range(2))
    return 0.5 if alike[0] else shares, 2.0 if alike[1] else counts


def naive(kept, table, rows, slots, shares, repeated, counted):
    """Merge one row after another, in float64."""
    sums, of_kept, counts = kept.double() * 0, 1 + kept[..., 0].double() * 0, 0
    counts = of_kept.clone()
    for b, n, e in torch.cartesian_prod(*map(torch.arange, rows.shape)):
        if (row := rows[b, n, e]) >= table.shape[2]:
            continue
        share = shares[b, n, e].double() if isinstance(shares, torch.Tensor) else shares
        slot = slots[b, n, e]
        sums[b, n, slot] += share * table[b, n, row].double()
        of_kept[b, n, slot] += repeated * share
        counts[b, n, slot] += (
            counted[b, n, e].double() if isinstance(counted, torch.Tensor) else counted * share
        )
    return ((kept.double() * of_kept[..., None] + sums) / counts[..., None]).to(kept.dtype)


def found(device, kept, table, rows, slots, shares, repeated, counted):
    def on(each):
        return each.to(device) if isinstance(each, torch.Tensor) else each

    # Tables of one layer may differ in width.
    both = (
        [kept.to(device), kept[..., :3].to(device)],
        [table.to(device), table[..., :3].to(device)],
    )
    wide, narrow = merged_rows(
        *both, on(rows), on(slots), on(shares), repeated=repeated, counted=on(counted)
    )
    torch.testing.assert_close(narrow, wide[..., :3], rtol=1e-6, atol=1e-7)
    return wide.cpu()


@pytest.mark.sampled(3, "length", "dtype", "alike", "program_order", "form")
@shapes
@dtypes
@pytest.mark.parametrize("alike", WAYS, ids=str)
@pytest.mark.usefixtures("program_order")
def test_rows_are_merged_by_the_formula(
    batch, heads, length, chosen, count, dim, dtype, alike, device
):
    given = example(batch, heads, length, chosen, count, dim, dtype)
    shares, counted = weights(given[2], length, alike)
    merged = found(device, *given, shares, 1.5, counted)
    assert merged.dtype == dtype
    expected = naive(*given, shares, 1.5, counted)
    torch.testing.assert_close(
        merged, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-7
    )


@pytest.mark.parametrize("alike", WAYS, ids=str)
def test_rows_that_do_not_exist_are_not_merged(alike, device):
    kept, table, rows, slots = example(1, 2, 20, 12, 4, 8)
    rows = rows.clone()
    rows[..., 9:] = 20
    shares, counted = weights(rows, 20, alike)
    merged = found(device, kept, table, rows, slots, shares, 1.0, counted)
    expected = naive(kept, table, rows, slots, shares, 1.0, counted)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7)


@dtypes
def test_a_slot_without_rows_stays_bit_for_bit(dtype, device):
    kept, table, rows, slots = example(2, 2, 20, 12, 6, 8, dtype)
    merged = found(device, kept, table, rows, slots % 3, 0.5, 1.0, 2.0)
    assert torch.equal(merged[:, :, 3:], kept[:, :, 3:])
    assert not torch.equal(merged[:, :, :3], kept[:, :, :3])


def test_any_layout_is_taken(layout, device):
    kept, table, rows, slots = example(2, 2, 30, 20, 6, 16)
    merged = found(device, layout(kept), layout(table), rows, slots, 0.5, 1.0, 2.0)
    expected = naive(kept, table, rows, slots, 0.5, 1.0, 2.0)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7)


def test_a_sequence_ignores_its_batch_mates(device):
    given, one = example(3, 2, 30, 20, 6, 16), slice(1, 2)
    together = found(device, *given, 0.5, 1.0, 2.0)
    alone = found(device, *(each[one] for each in given), 0.5, 1.0, 2.0)
    assert torch.equal(together[one], alone)


def test_nothing_may_be_merged_and_nothing_kept(device):
    kept, table, rows, slots = example(1, 2, 6, 4, 3, 8)
    assert torch.equal(found(device, kept, table, rows[..., :0], slots[..., :0], 0.5, 1, 2.0), kept)
    nothing = merged_rows([], [], rows.to(device), slots.to(device), 0.5, repeated=1, counted=2.0)
    assert nothing == []


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    given = example(1, 2, 60, 50, 7, 8)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    expected = naive(*given, 0.5, 1.0, 2.0)
    torch.testing.assert_close(found(device, *given, 0.5, 1.0, 2.0), expected, rtol=1e-6, atol=1e-7)


def test_shapes_that_do_not_fit_are_an_error(refused):
    kept, table, rows, slots = example(1, 2, 6, 4, 3, 8)
    shares = torch.rand(rows.shape)
    for given in (
        ([kept], [table], rows, slots[..., 1:], shares),
        ([kept], [table], rows, slots, shares[..., 1:]),
        ([kept], [table[..., 1:]], rows, slots, shares),
        ([kept], [], rows, slots, shares),
    ):
        with refused("do not fit"):
            merged_rows(*given, repeated=1.0, counted=1.0)
