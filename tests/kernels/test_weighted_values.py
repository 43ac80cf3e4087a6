import pytest
import torch

from kvpolicy_kernels import weighted_values
from kvpolicy_kernels.common.pytorch import blocks

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@dtypes
def test_values_are_summed_by_attention(dtype, layout):
    values, attention = torch.randn(2, 2, 17, 5).to(dtype), torch.rand(2, 6, 17)
    expected = attention.double()[..., None, :] @ values.double().repeat_interleave(3, 1)[:, :, :]
    actual = weighted_values(attention, layout(values))
    torch.testing.assert_close(actual.double(), expected[:, :, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    attention, values = torch.rand(1, 4, 33), torch.randn(1, 2, 33, 8)
    whole = weighted_values(attention, values)
    monkeypatch.setattr(blocks, "CACHED_BYTES", rows * 8 * 4)
    torch.testing.assert_close(weighted_values(attention, values), whole, rtol=1e-4, atol=1e-4)


def test_slices_of_the_past_are_taken_as_they_are():
    attention, values = torch.rand(2, 4, 20)[..., :15], torch.randn(2, 2, 20, 6)[:, :, :15]
    copies = attention.clone(), values.clone()
    assert torch.equal(weighted_values(attention, values), weighted_values(*copies))


def test_shapes_that_do_not_fit_are_an_error(refused):
    with refused("differ in batch or positions"):
        weighted_values(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 5))
