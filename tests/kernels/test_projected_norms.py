import pytest
import torch

from kvpolicy_kernels import head_factors, projected_norms

SHAPES = [(1, 1, 1, 1, 4, 4), (2, 6, 2, 17, 8, 5), (1, 4, 4, 700, 24, 96)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq", "dim", "rank"), SHAPES)


def naive(values, weights, order):
    groups = weights.shape[0] // values.shape[1]
    projected = torch.einsum(
        "hrd,bhsd->bhsr", weights.double(), values.double().repeat_interleave(groups, 1)
    )
    return projected.norm(p=order, dim=-1).unflatten(1, (-1, groups)).mean(2)


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_matches_the_definition(batch, heads, kv_heads, seq, dim, rank, dtype, order, layout):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    weights = torch.randn(heads, rank, dim).to(dtype)
    norms = projected_norms(layout(values), weights, order=order)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms.double(), naive(values, weights, order), rtol=1e-5, atol=1e-6)


def test_norms_do_not_depend_on_the_blocks():
    values, weights = torch.randn(2, 1, 700, 4), torch.randn(1, 40_000, 4)
    expected = naive(values, weights, 2)
    norms = projected_norms(values, weights, order=2)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


def test_of_order_2_factors_do_for_the_projection():
    values, weight = torch.randn(1, 2, 9, 8), torch.randn(48, 4 * 8)
    columns = weight.view(48, 4, 8).transpose(0, 1)
    by_factors = projected_norms(values, head_factors(weight, heads=4), order=2)
    torch.testing.assert_close(by_factors, projected_norms(values, columns, order=2))


@pytest.mark.parametrize(
    ("weights", "order", "message"),
    [
        ((3, 8, 8), 1, "3 query heads do not divide among 2 key/value heads"),
        ((4, 8, 7), 1, "do not fit values"),
        ((4, 8, 8), 3, "order must be 1 or 2, not 3"),
    ],
)
def test_mistakes_are_named(weights, order, message, refused):
    with refused(message):
        projected_norms(torch.zeros(1, 2, 5, 8), torch.zeros(weights), order=order)
