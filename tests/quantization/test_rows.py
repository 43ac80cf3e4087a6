"""Rows become bytes and come back: within half a step, each by itself."""

import importlib.util
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError
from kvpolicy.quantization import BACKENDS, RowFormat, check_backend

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
MISSING = {
    "quanto": "optimum" if not importlib.util.find_spec("optimum") else None,
    "hqq": "hqq" if not importlib.util.find_spec("hqq") else None,
}


def needs(backend):
    missing = MISSING[backend]
    return pytest.mark.skipif(missing is not None, reason=f"package {missing} is not installed")


def random_rows(dim, *, seed=0, count=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((2, count // 2, dim), generator=generator)
    rows[..., 0] *= 20  # keys have channels that stand out
    return rows.to(dtype)


def steps(rows, form):
    """Return the step of every number, for groups that `minmax` spreads."""
    size = form._size(rows.shape[-1])
    groups = rows.float().reshape(-1, size)
    step = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / (2**form.bits - 1)
    return step.expand_as(groups).reshape(rows.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [1, 7, 8, 64, 80, 96, 128, 256])
def test_no_number_is_off_by_more_than_half_a_step(bits, dim):
    rows, form = random_rows(dim), RowFormat(bits=bits, group=64)
    code = form.encoded(rows)

    assert code.shape == (*rows.shape[:-1], form.nbytes(dim))
    error = (form.decoded(code, dim, torch.float32) - rows).abs()
    # Beyond half a step there is only the rounding of code * step + least in float32.
    assert (error <= steps(rows, form) / 2 + 4e-7 * rows.abs().amax()).all()


@pytest.mark.parametrize(("bits", "dim", "nbytes"), [(8, 128, 144), (4, 128, 80), (4, 80, 56)])
def test_a_row_takes_its_codes_and_eight_bytes_a_group(bits, dim, nbytes):
    assert RowFormat(bits=bits, group=64).nbytes(dim) == nbytes


def test_groups_divide_the_channels_evenly():
    form = RowFormat(bits=8, group=64)
    assert [form._size(dim) for dim in (7, 64, 80, 96, 100, 128)] == [7, 64, 40, 48, 50, 64]


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(NUMBERS, min_size=6, max_size=6), min_size=1, max_size=5),
    bits=st.sampled_from([4, 8]),
)
def test_a_row_does_not_depend_on_its_company(rows, bits):
    form, rows = RowFormat(bits=bits, group=3), torch.tensor(rows)
    together = form.encoded(rows)
    alone = torch.cat([form.encoded(row[None]) for row in rows])

    assert torch.equal(together, alone)
    assert torch.equal(
        form.decoded(together, 6, torch.float32),
        torch.cat([form.decoded(code[None], 6, torch.float32) for code in alone]),
    )
    assert form.decoded(together, 6, torch.float32).isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_one_number_are_met(bits):
    form, rows = RowFormat(bits=bits, group=64), torch.tensor([[0.0] * 8, [3.25] * 8])
    assert torch.equal(form.decoded(form.encoded(rows), 8, torch.float32), rows)


def test_no_rows_are_no_bytes():
    form = RowFormat(bits=4, group=64)
    code = form.encoded(torch.empty(2, 3, 0, 8))
    assert code.shape == (2, 3, 0, form.nbytes(8))
    assert form.decoded(code, 8, torch.float32).shape == (2, 3, 0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_its_own_type(dtype):
    rows, form = random_rows(64, dtype=dtype), RowFormat(bits=8, group=64)
    found = form.decoded(form.encoded(rows), 64, dtype)
    assert found.dtype == dtype
    slack = torch.finfo(dtype).eps * rows.float().abs()
    assert ((found - rows).float().abs() <= steps(rows, form) / 2 + slack + 1e-6).all()


def test_quanto_has_no_groups_of_eight_bits():
    with pytest.raises(InvalidValueError, match="'quanto' has codes of 4 bits, not of 8"):
        check_backend("quanto", 8)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_back_end_that_is_not_installed_is_named(backend, monkeypatch):
    monkeypatch.setattr("kvpolicy.quantization.backends.find_spec", lambda name: None)
    with pytest.raises(InvalidValueError, match=r"needs a package .* pip install .* no package"):
        check_backend(backend, 4)


@needs("quanto")
def test_quanto_spreads_codes_as_minmax_does():
    groups = random_rows(64).view(-1, 64)
    for ours, theirs in zip(
        BACKENDS["minmax"](groups, 4), BACKENDS["quanto"](groups, 4), strict=True
    ):
        torch.testing.assert_close(theirs, ours)


@needs("quanto")
def test_four_bits_are_those_of_transformers_with_quanto(monkeypatch):
    from optimum.quanto.library.extensions import get_extension
    from transformers.cache_utils import QuantoQuantizedLayer

    def unpack(packed, bits):
        """Read the low halves of all bytes, then the high ones, as quanto's C++ does."""
        return torch.cat([packed & 15, packed >> 4])

    # To compile that C++ takes most of a minute.
    monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))

    rows, form = random_rows(64)[None], RowFormat(bits=4, group=64)
    layer = QuantoQuantizedLayer(nbits=4, axis_key=0, axis_value=0, q_group_size=64)
    theirs = layer._dequantize(layer._quantize(rows, axis=0))
    torch.testing.assert_close(form.decoded(form.encoded(rows), 64, torch.float32), theirs)


@needs("hqq")
def test_hqq_errs_less_on_average_with_four_bits():
    rows = random_rows(64)
    errors = {
        backend: (form.decoded(form.encoded(rows), 64, torch.float32) - rows).abs().mean()
        for backend in ("minmax", "hqq")
        if (form := RowFormat(bits=4, group=64, backend=backend))
    }
    assert errors["hqq"] < errors["minmax"]


@needs("hqq")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_company_with_hqq(bits):
    form, rows = RowFormat(bits=bits, group=32, backend="hqq"), random_rows(64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = torch.cat([form.encoded(row[None]) for row in rows.view(-1, 64)])
    assert torch.equal(form.encoded(rows).view(-1, form.nbytes(64)), alone)
