import pytest
import torch

from kvpolicy_kernels import gaussian_logits
from kvpolicy_kernels.common.pytorch import blocks

pytestmark = pytest.mark.usefixtures("form")

# One position; no power of two; more columns than a tile; several blocks of positions.
SHAPES = [(1, 1, 1, 1, 4), (2, 6, 2, 70, 24), (1, 2, 1, 33, 130)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq", "dim"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, kv_heads, seq, dim, dtype=torch.float32):
    root = torch.randn(batch, heads, dim, dim)
    return (
        torch.randn(batch, kv_heads, seq, dim).to(dtype),
        torch.randn(batch, heads, dim),
        root @ root.mT,
    )


def naive(keys, mean, covariance, scaling):
    keys = keys.double().repeat_interleave(mean.shape[1] // keys.shape[1], 1)
    linear = (keys * mean.double()[:, :, None]).sum(-1) * scaling
    if covariance is None:
        return linear
    return (
        linear
        + torch.einsum("bhsd,bhde,bhse->bhs", keys, covariance.double(), keys) * scaling**2 / 2
    )


@pytest.mark.sampled(3, "seq", "dtype", "spread", "program_order", "form")
@shapes
@dtypes
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.usefixtures("program_order")
def test_matches_the_definition(batch, heads, kv_heads, seq, dim, dtype, spread, device):
    keys, mean, covariance = example(batch, heads, kv_heads, seq, dim, dtype)
    given = covariance if spread else None
    found = gaussian_logits(
        keys.to(device), mean.to(device), given if given is None else given.to(device), scaling=0.3
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.cpu().double(), naive(keys, mean, given, 0.3), rtol=1e-4, atol=1e-4
    )


def test_any_layout_is_taken(layout, device):
    keys, mean, covariance = example(2, 4, 2, 40, 24)
    found = gaussian_logits(
        layout(keys).to(device), mean.to(device), covariance.mT.to(device), scaling=0.3
    )
    torch.testing.assert_close(
        found.cpu().double(), naive(keys, mean, covariance, 0.3), rtol=1e-4, atol=1e-4
    )


def test_a_sequence_ignores_its_batch_mates(device):
    keys, mean, covariance = (each.to(device) for each in example(3, 4, 2, 70, 8))
    one = slice(1, 2)
    alone = gaussian_logits(keys[one], mean[one], covariance[one], scaling=1.0)
    torch.testing.assert_close(gaussian_logits(keys, mean, covariance, scaling=1.0)[one], alone)


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    given = [each.to(device) for each in example(1, 4, 2, 33, 8)]
    whole = gaussian_logits(*given, scaling=1.0)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 5 * 4 * 8 * 4)
    torch.testing.assert_close(gaussian_logits(*given, scaling=1.0), whole)


def test_without_keys_there_are_no_logits(device):
    keys, mean, covariance = (each.to(device) for each in example(1, 2, 1, 0, 8))
    assert gaussian_logits(keys, mean, covariance, scaling=1.0).shape == (1, 2, 0)


@pytest.mark.parametrize(
    ("keys", "mean", "covariance", "message"),
    [
        ((1, 2, 5, 8), (1, 3, 8), (1, 3, 8, 8), "3 query heads do not divide"),
        ((1, 2, 5, 7), (1, 2, 8), (1, 2, 8, 8), "does not fit keys"),
        ((1, 2, 5, 8), (1, 2, 8), (1, 2, 8, 7), "does not fit mean"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(keys, mean, covariance, message, refused):
    with refused(message):
        gaussian_logits(torch.zeros(keys), torch.zeros(mean), torch.zeros(covariance), scaling=1.0)
