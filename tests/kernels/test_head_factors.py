import pytest
import torch

from kvpolicy_kernels import head_factors


@pytest.mark.parametrize(("model_dim", "heads", "dim"), [(40, 3, 8), (5, 2, 8), (8, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors_keep_the_norm_of_a_head_after_projection(model_dim, heads, dim, dtype):
    weight = torch.randn(model_dim, heads * dim).to(dtype)
    factors = head_factors(weight, heads)
    assert factors.shape == (heads, min(model_dim, dim), dim)
    vectors = torch.randn(heads, dim, 10).double()
    blocks = weight.double().view(model_dim, heads, dim).transpose(0, 1)
    torch.testing.assert_close(
        (factors.double() @ vectors).norm(dim=1), (blocks @ vectors).norm(dim=1),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_a_head_of_zeros_has_a_factor():
    assert head_factors(torch.zeros(6, 4), heads=2).count_nonzero() == 0


def test_columns_that_do_not_divide_are_an_error(refused):
    with refused("7 columns do not divide among 2 heads"):
        head_factors(torch.zeros(3, 7), heads=2)
