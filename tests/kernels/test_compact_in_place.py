import pytest
import torch

from kvpolicy_kernels import compact_in_place
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.gather_kv import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1, 1, 1, 8, 8),
    (2, 3, 300, 261, 40, 16),
    (1, 2, 270, 129, 80, 80),
    (2, 1, 5, 0, 4, 4),
]
shapes = pytest.mark.parametrize(("batch", "heads", "seq", "kept", "dim", "value_dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def ascending(batch, heads, seq, kept):
    return torch.rand(batch, heads, seq).argsort(-1)[..., :kept].sort(-1).values


def buffers(batch, heads, seq, dim, value_dim, dtype=torch.float32):
    """Keys and values side by side in one buffer, with slack behind the positions."""
    room = torch.randn(batch, heads, seq + 7, dim + value_dim).to(dtype)
    return room, room[:, :, :seq, :dim], room[:, :, :seq, dim:]


def expected(table, rows):
    """What copying row by row in a list gives."""
    after = table.clone()
    for b, n, k in torch.cartesian_prod(*map(torch.arange, rows.shape)).tolist():
        if rows[b, n, k] < table.shape[2]:
            after[b, n, k] = table[b, n, rows[b, n, k]]
    return after


def check(keys, values, rows):
    after = expected(keys, rows.cpu()), expected(values, rows.cpu())
    compact_in_place(keys, values, rows)
    assert torch.equal(keys, after[0])
    assert torch.equal(values, after[1])


@shapes
@dtypes
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_moves_rows_to_the_front_in_order(
    batch, heads, seq, kept, dim, value_dim, dtype, block, monkeypatch
):
    monkeypatch.setattr(blocks, "CACHED_BYTES", 4 * batch * heads * dim * block)
    _, keys, values = buffers(batch, heads, seq, dim, value_dim, dtype)
    check(keys, values, ascending(batch, heads, seq, kept).int())


def test_any_layout_stays_where_it_is(layout):
    keys, values = (layout(torch.randn(2, 3, 50, dim)) for dim in (8, 6))
    check(keys, values, ascending(2, 3, 50, 40))


@pytest.mark.parametrize("evicted", [[], [0], [99], [0, 1, 2], [7, 50, 51], range(1, 99)])
@pytest.mark.parametrize("contiguous", [True, False])
@dtypes
def test_few_gaps_close_head_by_head(evicted, contiguous, dtype):
    """Each head has gaps of its own; rows behind a gap move by one copy of memory that overlaps."""
    kept = torch.tensor([row for row in range(100) if row not in evicted])
    rows = torch.stack([kept, 99 - kept.flip(0)])
    _, keys, values = buffers(1, 2, 100, 8, 8, dtype)
    tables = (keys.clone(), values.clone()) if contiguous else (keys, values)
    check(*tables, rows[None])


def test_a_backward_pass_finds_out_that_rows_have_moved():
    keys, values = torch.zeros(2, 1, 1, 50, 3)
    weight = torch.ones(3, requires_grad=True)
    product = (keys * weight).sum()
    compact_in_place(keys, values, torch.arange(1, 50)[None, None])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_nothing_but_the_first_places_changes():
    room, keys, values = buffers(2, 3, 20, 8, 4)
    before = room.clone()
    compact_in_place(keys, values, ascending(2, 3, 20, 12))
    assert torch.equal(room[:, :, 12:], before[:, :, 12:])


def test_shorter_heads_end_in_fillers():
    keys, values = torch.arange(5.0).view(1, 1, 5, 1), torch.arange(5.0, 10).view(1, 1, 5, 1)
    compact_in_place(keys, values, torch.tensor([[[1, 4, 5, 5]]]))
    assert keys.flatten().tolist() == [1, 4, 2, 3, 4]
    assert values.flatten().tolist() == [6, 9, 7, 8, 9]


@pytest.mark.parametrize("rows", [[[-1, 2]], [[2, 2]], [[3, 1]], [[4, 1]]])
def test_rows_that_do_not_ascend_are_an_error(rows):
    keys, values = torch.zeros(2, 1, 1, 4, 3)
    with pytest.raises(ValueError, match="must ascend strictly, from 0 or above"):
        compact_in_place(keys, values, torch.tensor([rows]))


def test_memory_that_is_shared_is_an_error(refused):
    keys, values = torch.zeros(2, 1, 2, 4, 3)
    rows = torch.zeros(1, 2, 1).long()
    for shared in ((keys, keys), (keys[:, :1].expand(1, 2, 4, 3), values)):
        with refused("must not share memory"):
            compact_in_place(*shared, rows)


def test_shapes_that_do_not_fit_are_an_error(refused):
    keys, values = torch.zeros(2, 1, 2, 4, 3)
    with refused("differ in batch, heads or positions"):
        compact_in_place(keys, values, torch.zeros(1, 1, 1).long())
    with refused("5 rows do not fit into the 4 positions"):
        compact_in_place(keys, values, torch.arange(5).expand(1, 2, 5))


@pytest.mark.sampled(3, "seq", "dtype", "program_order")
@shapes
@dtypes
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_moves_the_same_rows(batch, heads, seq, kept, dim, value_dim, dtype, device):
    room, keys, values = buffers(batch, heads, seq, dim, value_dim, dtype)
    rows = ascending(batch, heads, seq, kept)
    there = room.clone().to(device)
    reference.compact_in_place(keys, values, rows)
    compact_in_place(there[:, :, :seq, :dim], there[:, :, :seq, dim:], rows.int().to(device))
    assert torch.equal(there.cpu(), room)


@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_takes_any_layout(layout, device):
    keys, values = (layout(torch.randn(2, 2, 140, dim)).to(device) for dim in (20, 6))
    check(keys, values, ascending(2, 2, 140, 131).to(device))


@pytest.mark.parametrize("evicted", [[], [0], [149], [0, 1, 2], range(40, 45), range(1, 149)])
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_closes_every_gap(evicted, device):
    kept = [row for row in range(150) if row not in evicted]
    _, keys, values = buffers(1, 1, 150, 8, 8)
    check(keys.to(device), values.to(device), torch.tensor([[kept]], device=device))


@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_leaves_the_places_of_fillers(device):
    _, keys, values = buffers(2, 2, 140, 8, 8)
    rows = ascending(2, 2, 140, 135)
    rows[0, 1, 50:] = 140
    rows[1, 0] = 2**40
    check(keys.to(device), values.to(device), rows.to(device))


@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_touches_nothing_outside_the_positions(device):
    room, _, _ = buffers(1, 2, 20, 8, 4)
    room, before = room.to(device), room.clone()
    rows = torch.tensor([[[-5, 90, 7], [3, 2, 1]]], device=device)
    compact_in_place(room[:, :, :20, :8], room[:, :, :20, 8:], rows)
    assert torch.equal(room[:, :, 3:].cpu(), before[:, :, 3:])
    assert torch.equal(room[:, 0, :2].cpu(), before[:, 0, :2])


# A call is repeated to catch programs that race. Triton's interpreter runs them one after another,
# so that each of the 200 runs would say the same. The tests above try the reversed order.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the interpreter has no races")
@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_gives_the_same_bits_every_time(device):
    room, keys, values = buffers(2, 8, 4096, 128, 64, torch.bfloat16)
    room = room.to(device)
    rows = ascending(2, 8, 4096, 3500)
    reference.compact_in_place(keys, values, rows)
    expected_keys, expected_values, rows = keys.to(device), values.to(device), rows.to(device)
    for _ in range(200):
        there = room.clone()
        moved = there[:, :, :4096, :128], there[:, :, :4096, 128:]
        compact_in_place(*moved, rows)
        assert torch.equal(moved[0], expected_keys)
        assert torch.equal(moved[1], expected_values)
