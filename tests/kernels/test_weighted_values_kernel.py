import pytest
import torch

from kvpolicy_kernels import weighted_values
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.weighted_values import reference

pytestmark = pytest.mark.usefixtures("triton_kernels")

# One position; a group that is no power of two; head sizes that are none; several blocks of
# positions; more heads than a tile.
SHAPES = [
    (1, 1, 1, 1, 4),
    (2, 6, 2, 17, 8),
    (2, 4, 1, 140, 80),
    (1, 2, 2, 33, 130),
    (1, 40, 1, 70, 8),
]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq", "dim"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, kv_heads, seq, dim, dtype=torch.float32):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    return torch.rand(batch, heads, seq), values


def on(device, *tensors):
    return (tensor.to(device) for tensor in tensors)


@pytest.mark.sampled(3, "seq", "dtype", "program_order")
@shapes
@dtypes
@pytest.mark.usefixtures("program_order")
def test_values_are_summed_by_attention(batch, heads, kv_heads, seq, dim, dtype, device):
    attention, values = example(batch, heads, kv_heads, seq, dim, dtype)
    repeated = values.double().repeat_interleave(heads // kv_heads, 1)
    expected = (attention.double()[:, :, None] @ repeated)[:, :, 0]
    actual = weighted_values(*on(device, attention, values))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_any_layout_is_taken(layout, device):
    attention, values = example(2, 4, 2, 40, 24)
    strided = attention.mT.contiguous().mT.to(device), layout(values).to(device)
    expected = reference.weighted_values(attention, values)
    torch.testing.assert_close(weighted_values(*strided).cpu(), expected)


def test_slices_of_the_past_are_taken_as_they_are(device):
    attention, values = on(device, *example(2, 4, 2, 20, 8))
    past = attention[..., :15], values[:, :, :15]
    summed = weighted_values(*past)
    assert torch.equal(summed, weighted_values(*(part.clone() for part in past)))


def test_without_positions_the_sum_is_zero(device):
    sums = weighted_values(*on(device, torch.rand(1, 2, 0), torch.rand(1, 1, 0, 8)))
    assert sums.shape == (1, 2, 8)
    assert sums.count_nonzero() == 0


@pytest.mark.parametrize("programs", [1, 3, 1000])
@pytest.mark.usefixtures("program_order")
def test_how_positions_split_among_programs_does_not_matter(programs, monkeypatch, device):
    attention, values = example(1, 4, 2, 150, 16)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    sums = weighted_values(*on(device, attention, values)).cpu()
    torch.testing.assert_close(sums, reference.weighted_values(attention, values))


def test_a_sequence_ignores_its_batch_mates(device):
    attention, values = on(device, *example(3, 4, 2, 150, 8))
    sums = weighted_values(attention, values)
    alone = slice(1, 2)
    assert torch.equal(sums[alone], weighted_values(attention[alone], values[alone]))


def test_what_the_kernel_does_not_take_runs_in_pytorch(device):
    attention, values = on(device, *example(1, 2, 1, 5, 4))
    with pytest.warns(KernelFallbackWarning, match="does not compute in torch.float64"):
        actual = weighted_values(attention, values.double())
    assert torch.equal(actual, reference.weighted_values(attention, values))
