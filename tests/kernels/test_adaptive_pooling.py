import pytest
import torch

from kvpolicy_kernels import adaptive_pooling, mean_drift
from kvpolicy_kernels.adaptive_pooling import reference
from kvpolicy_kernels.backend import KernelFallbackWarning

pytestmark = pytest.mark.usefixtures("form")


def means_of(sums, count):
    return sums.double() / count


def pooled(drift):
    return adaptive_pooling(drift, width=3, scale=0.7)


@pytest.mark.parametrize("window", [2, 3, 4, 9, 33])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_drift_is_that_of_whole_sums(window, count, device):
    sums = torch.randint(0, 10**9, (2, 3, window))
    front, rear = sums[..., : window // 2], sums[..., window // 2 :]
    expected = (front.double().mean(-1) - rear.double().mean(-1)) / count
    actual = mean_drift(means_of(sums, count).to(device), count)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("count", [3, 7, 11, 49])
def test_equal_halves_do_not_drift(count, device):
    half = torch.randint(0, 10**10, (1, 4, 5))
    means = means_of(torch.cat([half, half.flip(-1)], -1), count)
    assert mean_drift(means.to(device), count).eq(0).all()


def test_half_sums_are_rounded_to_even_everywhere(device):
    means = torch.tensor([[[0.5, 1.5, 2.5, 3.5]]], dtype=torch.float64)
    assert mean_drift(means.to(device), 1).item() == -2


def test_takes_any_strides(device):
    means = torch.randint(0, 99, (3, 5, 6)).double().to(device).transpose(0, 2)
    assert torch.equal(mean_drift(means, 2), mean_drift(means.contiguous(), 2))
    drift = means[..., 0]
    for mine, plain in zip(pooled(drift), pooled(drift.contiguous()), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 4.0, 2000.0])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.usefixtures("program_order")
def test_widths_and_shifts_are_those_of_the_formula(width, scale, device):
    near = torch.arange(-40, 41).double() * scale
    drift = torch.cat([near, torch.randn(3 * 81, dtype=torch.float64) * 9999, -near])
    drift = drift.view(5, 81)
    widths, shifts = adaptive_pooling(drift.to(device), width=width, scale=scale)
    expected = reference.adaptive_pooling(drift, width=width, scale=scale)
    assert widths.dtype == shifts.dtype == torch.int64
    assert torch.equal(widths.cpu(), expected[0])
    assert torch.equal(shifts.cpu(), expected[1])


def test_no_head_has_no_pooling(device):
    drift = torch.empty(0, 4, dtype=torch.float64, device=device)
    assert [len(each) for each in pooled(drift)] == [0, 0]
    assert mean_drift(drift[..., None].expand(-1, -1, 3), 1).shape == (0, 4)


def test_what_cannot_be_is_refused(refused):
    with refused("a window of 1 queries has no halves"):
        mean_drift(torch.zeros(1, 1, 1, dtype=torch.float64), 1)
    with refused("count must be at least 1, not 0"):
        mean_drift(torch.zeros(1, 1, 2, dtype=torch.float64), 0)
    with refused("scale must be above 0, not 0"):
        adaptive_pooling(torch.zeros(1, 1, dtype=torch.float64), width=1, scale=0)


@pytest.mark.parametrize("form", ["triton"], indirect=True)
def test_a_window_too_long_for_a_program_runs_in_pytorch(device, monkeypatch):
    from kvpolicy_kernels.adaptive_pooling import kernel

    monkeypatch.setattr(kernel, "MOST_QUERIES", 4)
    means = torch.arange(5.0, device=device).double()[None, None]
    with pytest.warns(KernelFallbackWarning, match="at most 4 queries, these are 5"):
        assert mean_drift(means, 1).item() == -2.5
