import pytest
import torch

from kvpolicy_kernels import gather_kv
from kvpolicy_kernels.gather_kv import reference

SHAPES = [(1, 1, 1, 1, 8, 8), (2, 3, 100, 65, 64, 32), (1, 2, 63, 63, 80, 80), (2, 1, 5, 0, 4, 4)]
shapes = pytest.mark.parametrize(("batch", "heads", "seq", "kept", "dim", "value_dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, seq, kept, dim, value_dim, dtype=torch.float32):
    keys = torch.randn(batch, heads, seq, dim).to(dtype)
    values = torch.randn(batch, heads, seq, value_dim).to(dtype)
    return keys, values, torch.randint(seq, (batch, heads, kept))


def naive(table, rows):
    return torch.take_along_dim(table, rows.long()[..., None], dim=2)


@shapes
@dtypes
def test_copies_rows_in_the_given_order(batch, heads, seq, kept, dim, value_dim, dtype, layout):
    keys, values, rows = example(batch, heads, seq, kept, dim, value_dim, dtype)
    kept_keys, kept_values = gather_kv(layout(keys), layout(values), rows.int())
    assert torch.equal(kept_keys, naive(keys, rows))
    assert torch.equal(kept_values, naive(values, rows))


def test_takes_a_table_that_broadcasts():
    keys = torch.randn(5, 4).expand(2, 3, 5, 4)
    rows = torch.randint(5, (2, 3, 6))
    assert torch.equal(gather_kv(keys, keys, rows)[0], naive(keys, rows))


def test_gradients_reach_the_kept_rows_only():
    keys = torch.randn(1, 2, 4, 3, requires_grad=True)
    gather_kv(keys, keys.detach(), torch.tensor([[[1], [3]]]))[0].sum().backward()
    assert keys.grad.sum(-1).tolist() == [[[0, 3, 0, 0], [0, 0, 0, 3]]]


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_does_not_exist_is_an_error(row):
    keys = torch.zeros(1, 2, 4, 3)
    with pytest.raises(IndexError, match=f"{row}.* not all among the 4 positions"):
        gather_kv(keys, keys, torch.tensor([[[row], [row]]]))


def test_shapes_that_do_not_fit_are_an_error(refused):
    with refused("differ in batch, heads or positions"):
        gather_kv(torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 1).long())


@pytest.mark.sampled(3, "seq", "dtype", "layout", "program_order")
@shapes
@dtypes
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_matches_the_reference(
    batch, heads, seq, kept, dim, value_dim, dtype, layout, device
):
    keys, values, rows = example(batch, heads, seq, kept, dim, value_dim, dtype)
    expected = reference.gather_kv(keys, values, rows)
    actual = gather_kv(layout(keys).to(device), layout(values).to(device), rows.int().to(device))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, actual, strict=True))


@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_reads_nothing_outside_the_positions(device):
    keys = torch.ones(1, 1, 4, 3, device=device)
    rows = torch.tensor([[[-1, 4, 3]]], device=device)
    kept, _ = gather_kv(keys, keys, rows)
    assert kept[0, 0, :, 0].tolist() == [0, 0, 1]
