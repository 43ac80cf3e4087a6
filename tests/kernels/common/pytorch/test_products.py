"""Products are the same, whichever library makes them."""

import pytest
import torch

from kvpolicy_kernels.common.pytorch import products
from kvpolicy_kernels.common.pytorch.products import transposed_product


@pytest.fixture
def asked(monkeypatch):
    """How many products oneDNN was asked for."""
    calls = []
    product = products._by_onednn()
    if not torch.backends.mkldnn.is_available():
        # PyTorch is built without oneDNN for some processors, or by those who compile it so. Then
        # another library multiplies, and there are no calls to count. Where it has oneDNN, the
        # tests do not skip: the next line fails if the operator is missing.
        pytest.skip("this PyTorch is built without oneDNN, which these tests count the calls of")
    assert product is not None, "PyTorch has oneDNN, but its float32 operator is not used"

    def counted(*matrices):
        calls.append(matrices)
        return product(*matrices)

    monkeypatch.setattr(products, "_by_onednn", lambda: counted)
    return calls


SIZES = [(1, 1, 1), (3, 5, 2), (128, 3000, 64), (129, 8192, 128), (5000, 16, 40)]


@pytest.mark.parametrize(("rows", "others", "dim"), SIZES)
@pytest.mark.parametrize("dense", [True, False])
def test_is_as_close_to_the_true_product_as_that_of_pytorch(rows, others, dim, dense):
    left, right = torch.randn(rows, 2 * dim), torch.randn(others, 2 * dim)
    left, right = (each[:, :dim] if dense else each[:, ::2] for each in (left, right))
    true = left.double() @ right.double().T
    error = (transposed_product(left, right) - true).abs().max()
    # Sums of dim products in another order: a few units in the last place of the largest.
    assert error <= 4 * torch.finfo(torch.float32).eps * dim**0.5 * true.abs().max()


def test_large_products_are_onednns_where_it_can(asked):
    transposed_product(torch.randn(1024, 64), torch.randn(128, 64))
    assert len(asked) == 1


def test_onednn_is_given_rows_without_gaps(asked):
    transposed_product(torch.randn(1024, 128)[:, :64], torch.randn(128, 128)[:, ::2])
    ((rows, others),) = asked
    assert rows.is_contiguous()
    assert others.is_contiguous()


def test_small_ones_are_not_prepared_for(asked):
    transposed_product(torch.randn(8, 64), torch.randn(128, 64))
    assert not asked


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # Said by PyTorch of any use of its flags.
def test_who_switches_onednn_off_is_obeyed(asked):
    with torch.backends.mkldnn.flags(enabled=False):
        transposed_product(torch.randn(1024, 64), torch.randn(128, 64))
    assert not asked


@pytest.mark.parametrize("wrong", ["missing", "refuses", "another number"])
def test_without_the_operator_the_product_is_pytorchs(wrong, monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    other = {
        "missing": lambda *_: torch.ops.mkldnn.no_such_operator,
        "refuses": refuse,
        "another number": lambda rows, others: rows @ others.T + 1,
    }[wrong]
    monkeypatch.setattr(products, "_linear", other)
    products._by_onednn.cache_clear()
    left, right = torch.randn(1024, 64), torch.randn(128, 64)
    try:
        assert products._by_onednn() is None
        assert torch.equal(transposed_product(left, right), left @ right.T)
    finally:
        products._by_onednn.cache_clear()
