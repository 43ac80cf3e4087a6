import pytest
import torch

from kvpolicy_kernels import projected_norms
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.projected_norms import kernel, reference

pytestmark = pytest.mark.usefixtures("triton_kernels")

# One position; no power of two anywhere; several blocks of positions and of rows; channels in
# several parts; more channels than a part.
SHAPES = [
    (1, 1, 1, 1, 4, 1),
    (2, 6, 2, 17, 8, 5),
    (1, 4, 2, 150, 24, 70),
    (1, 2, 2, 33, 130, 40),
]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "seq", "dim", "rank"), SHAPES, ids=str
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
orders = pytest.mark.parametrize("order", [1, 2])


def example(batch, heads, kv_heads, seq, dim, rank, dtype=torch.float32):
    return torch.randn(batch, kv_heads, seq, dim).to(dtype), torch.randn(heads, rank, dim).to(dtype)


def on(device, *tensors):
    return (tensor.to(device) for tensor in tensors)


@pytest.mark.sampled(3, "seq", "dtype", "order", "program_order")
@shapes
@dtypes
@orders
@pytest.mark.usefixtures("program_order")
def test_the_kernel_matches_the_reference(
    batch, heads, kv_heads, seq, dim, rank, dtype, order, device
):
    values, weights = example(batch, heads, kv_heads, seq, dim, rank, dtype)
    expected = reference.projected_norms(values, weights, order=order)
    actual = projected_norms(*on(device, values, weights), order=order)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


@orders
def test_weights_may_be_wider_than_values(order, device):
    values, weights = example(1, 4, 2, 20, 8, 8)
    values = values.bfloat16()
    expected = reference.projected_norms(values, weights, order=order)
    actual = projected_norms(*on(device, values, weights), order=order)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_any_layout_is_taken(layout, device):
    values, weight = torch.randn(2, 2, 40, 24), torch.randn(30, 4 * 24)
    columns = weight.view(30, 4, 24).transpose(0, 1)
    expected = reference.projected_norms(values, columns)
    actual = projected_norms(layout(values).to(device), columns.to(device))
    torch.testing.assert_close(actual.cpu(), expected)


def test_slices_of_the_past_are_taken_as_they_are(device):
    values, weights = on(device, *example(2, 4, 2, 20, 8, 12))
    past = projected_norms(values[:, :, :15], weights)
    assert torch.equal(past, projected_norms(values[:, :, :15].clone(), weights))


def test_without_positions_there_are_no_norms(device):
    values, weights = on(device, *example(1, 2, 1, 0, 8, 12))
    assert projected_norms(values, weights).shape == (1, 1, 0)


def test_a_sequence_ignores_its_batch_mates(device):
    values, weights = on(device, *example(3, 4, 2, 70, 8, 12))
    alone = projected_norms(values[1:2], weights)
    assert torch.equal(projected_norms(values, weights)[1:2], alone)


@pytest.mark.parametrize(("positions", "rows", "channels"), [(16, 16, 16), (128, 128, 32)])
def test_the_size_of_a_tile_does_not_matter(positions, rows, channels, monkeypatch, device):
    values, weights = example(1, 4, 2, 150, 24, 70)
    tile = kernel.ProductTile(positions, rows, channels, 4, 2)
    monkeypatch.setattr(kernel, "product_tile", lambda dim, exact: tile)
    actual = projected_norms(*on(device, values, weights)).cpu()
    torch.testing.assert_close(actual, reference.projected_norms(values, weights))


def test_what_the_kernel_does_not_take_runs_in_pytorch(device):
    values, weights = on(device, *example(1, 2, 1, 5, 4, 6))
    with pytest.warns(KernelFallbackWarning, match="does not compute in torch.float64"):
        actual = projected_norms(values.double(), weights.double())
    assert torch.equal(actual, reference.projected_norms(values.double(), weights.double()))
