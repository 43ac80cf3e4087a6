import pytest
import torch

from kvpolicy_kernels import direction_cosines
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.common.triton import launch

pytestmark = pytest.mark.usefixtures("form")

# One key; no power of two; several blocks of keys.
SHAPES = [(1, 1, 1, 4), (2, 3, 17, 24), (1, 2, 150, 130)]
shapes = pytest.mark.parametrize(("batch", "heads", "length", "dim"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def naive(keys):
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    return torch.cosine_similarity(unit, unit.mean(2, keepdim=True), dim=-1)


@pytest.mark.sampled(3, "length", "dtype", "program_order", "form")
@shapes
@dtypes
@pytest.mark.usefixtures("program_order")
def test_matches_the_definition(batch, heads, length, dim, dtype, device):
    keys = torch.randn(batch, heads, length, dim).to(dtype)
    found = direction_cosines(keys.to(device))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), naive(keys).float(), rtol=1e-6, atol=1e-7)


def test_any_layout_is_taken(layout, device):
    keys = torch.randn(2, 2, 40, 16)
    found = direction_cosines(layout(keys).to(device))
    torch.testing.assert_close(found.cpu(), naive(keys).float(), rtol=1e-6, atol=1e-7)


def test_two_keys_have_the_same_cosine(device):
    found = direction_cosines(torch.randn(1, 64, 2, 8).to(device))
    assert torch.equal(found[..., 0], found[..., 1])


def test_keys_without_a_direction_have_no_cosine(device):
    keys = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert (direction_cosines(keys.to(device)) == 0).all()


def test_a_sequence_ignores_its_batch_mates(device):
    keys = torch.randn(3, 2, 70, 8).to(device)
    torch.testing.assert_close(direction_cosines(keys)[1:2], direction_cosines(keys[1:2]))


@pytest.mark.parametrize("programs", [1, 1000])
def test_how_keys_are_split_does_not_matter(programs, monkeypatch, device):
    keys = torch.randn(1, 2, 300, 24)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    monkeypatch.setattr(blocks, "CACHED_BYTES", programs * 100)
    found = direction_cosines(keys.to(device))
    torch.testing.assert_close(found.cpu(), naive(keys).float(), rtol=1e-6, atol=1e-7)


def test_without_keys_there_are_no_cosines(device):
    assert direction_cosines(torch.zeros(1, 2, 0, 4).to(device)).shape == (1, 2, 0)
