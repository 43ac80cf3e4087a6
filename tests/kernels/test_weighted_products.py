import pytest
import torch

from kvpolicy_kernels import weighted_products
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.common.triton import launch

pytestmark = pytest.mark.usefixtures("form")

# One position; no power of two; more columns than a tile.
SHAPES = [(1, 1, 1, 1, 4), (2, 2, 3, 70, 24), (1, 2, 1, 45, 130)]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


def naive(weights, values):
    values = values.double().repeat_interleave(weights.shape[1] // values.shape[1], 1)
    return torch.einsum("bhs,bhsd,bhse->bhde", weights.double(), values, values)


@pytest.mark.parametrize(("batch", "kv_heads", "group", "seq", "dim"), SHAPES, ids=str)
@dtypes
@pytest.mark.usefixtures("program_order")
def test_products_are_summed_with_the_weights_of_each_query_head(
    batch, kv_heads, group, seq, dim, dtype, device
):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    weights = torch.rand(batch, kv_heads * group, seq)
    found = weighted_products(weights.to(device), values.to(device))
    torch.testing.assert_close(found.cpu().double(), naive(weights, values), **CLOSE)


def test_any_layout_is_taken(layout, device):
    values, weights = torch.randn(2, 2, 40, 8), torch.rand(2, 4, 40)
    found = weighted_products(
        layout(weights[..., None])[..., 0].to(device), layout(values).to(device)
    )
    torch.testing.assert_close(found.cpu().double(), naive(weights, values), **CLOSE)


def test_without_positions_sums_are_zero(device):
    found = weighted_products(torch.zeros(1, 4, 0).to(device), torch.zeros(1, 2, 0, 8).to(device))
    assert found.shape == (1, 4, 8, 8)
    assert found.count_nonzero() == 0


@pytest.mark.parametrize("programs", [1, 1000])
def test_how_positions_are_split_does_not_matter(programs, monkeypatch, device):
    values, weights = torch.randn(1, 2, 90, 8), torch.rand(1, 4, 90)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    monkeypatch.setattr(blocks, "CACHED_BYTES", programs * 100)
    found = weighted_products(weights.to(device), values.to(device))
    torch.testing.assert_close(found.cpu().double(), naive(weights, values), **CLOSE)


def test_a_sequence_ignores_its_batch_mates(device):
    values, weights = torch.randn(3, 2, 50, 8).to(device), torch.rand(3, 4, 50).to(device)
    together = weighted_products(weights, values)
    torch.testing.assert_close(together[1:2], weighted_products(weights[1:2], values[1:2]))


def test_shapes_that_do_not_fit_are_an_error(refused):
    with refused("differ in batch or positions"):
        weighted_products(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 5))
