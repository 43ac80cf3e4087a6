import pytest
import torch

from kvpolicy_kernels import partition_deviations
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.partition_deviations import reference

pytestmark = pytest.mark.usefixtures("form")

# One channel; one row of a partition; no power of two; several tiles of rows; one partition only.
SHAPES = [
    (1, 1, 4, 1, 2),
    (2, 3, 5, 24, 1),
    (2, 2, 21, 20, 7),
    (1, 1, 210, 130, 70),
    (1, 2, 4, 8, 4),
]
shapes = pytest.mark.parametrize(("batch", "heads", "rows", "dim", "lag"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def naive(states, lag):
    parts = states.double().unflatten(2, (-1, lag))
    own, after = parts[:, :, :-1], parts[:, :, 1:]
    low, high = after.amin(3, keepdim=True), after.amax(3, keepdim=True)
    normalised = torch.where(high > low, (own - low) / (high - low), 0.0)
    if states.shape[-1] == 1 or not normalised.numel():
        return torch.zeros(normalised.shape[:-1])
    return normalised.std(-1)


@pytest.mark.sampled(3, "dim", "dtype", "program_order", "form")
@shapes
@dtypes
@pytest.mark.usefixtures("program_order")
def test_rows_are_compared_with_the_next_partition(batch, heads, rows, dim, lag, dtype, device):
    states = torch.randn(batch, heads, rows, dim).to(dtype)
    found = partition_deviations(states.to(device), lag)
    assert found.dtype == torch.float32
    assert found.shape == (batch, heads, rows // lag - 1, lag)
    torch.testing.assert_close(
        found.cpu().double(), naive(states, lag).double(), rtol=1e-4, atol=1e-5
    )


def test_any_layout_is_taken(layout, device):
    states = torch.randn(2, 2, 24, 16)
    expected = naive(states, 8)
    found = partition_deviations(layout(states).to(device), 8).cpu()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_channels_without_a_scale_count_as_0(device):
    states = torch.tensor([[[[1.0, 7.0, 0.0], [1.0, -9.0, 1.0], [0.0, 2.0, 0.0], [1.0, 2.0, 1.0]]]])
    found = partition_deviations(states.to(device), 2).cpu()
    same = partition_deviations(states.clone().index_fill_(3, torch.tensor(1), 2.0).to(device), 2)
    assert torch.equal(found, same.cpu())


# Triton's interpreter computes with NumPy, which warns.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_far_rows_have_a_limit(device):
    states = torch.tensor([[[[3e38, 0.0], [-3e38, 0.0], [0.0, 0.0], [1e-30, 1.0]]]])
    found = partition_deviations(states.to(device), 2).cpu()
    torch.testing.assert_close(found, torch.full_like(found, reference.LIMIT / 2**0.5))


def test_one_partition_has_none_behind_it(device):
    assert partition_deviations(torch.zeros(1, 2, 3, 4).to(device), 3).shape == (1, 2, 0, 3)
    assert partition_deviations(torch.zeros(1, 2, 0, 4).to(device), 3).shape == (1, 2, 0, 3)


def test_a_sequence_ignores_its_batch_mates(device):
    states = torch.randn(3, 2, 12, 8).to(device)
    assert torch.equal(partition_deviations(states, 4)[1:2], partition_deviations(states[1:2], 4))


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    states = torch.randn(1, 2, 60, 8)
    whole = partition_deviations(states.to(device), 10)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    assert torch.equal(partition_deviations(states.to(device), 10), whole)


def test_rows_that_are_no_partitions_are_an_error(refused):
    with refused("5 rows are no partitions of 2 rows"):
        partition_deviations(torch.zeros(1, 1, 5, 2), 2)
