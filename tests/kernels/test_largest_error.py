import pytest
import torch

from kvpolicy_kernels import largest_error

pytestmark = pytest.mark.usefixtures("form")

# Batch, query heads, key/value heads, positions, channels, rank.
SHAPES = [(1, 1, 1, 1, 4, 4), (2, 6, 2, 17, 24, 24), (1, 4, 4, 9, 130, 70), (3, 2, 1, 30, 8, 1)]


def example(batch, heads, kv_heads, positions, dim, rank, dtype=torch.float32):
    weight = torch.rand(batch, heads, 1)
    place = torch.randint(0, positions, (batch, heads, 1))
    values = torch.randn(batch, kv_heads, positions, dim).to(dtype)
    others = (1 - weight) * torch.randn(batch, heads, dim)
    return others, weight, 1 - weight, place, values, torch.randn(heads, rank, dim)


def naive(others, weight, rest, place, values, factors, tau):
    """One head after another, in float64."""
    batch, heads = others.shape[:2]
    group, output = heads // values.shape[1], others.double().clone()
    error = torch.zeros(batch, heads, 1, dtype=torch.float64)
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)):
        a, left, other = (each[b, h].double() for each in (weight, rest, others))
        value = values[b, h // group, place[b, h, 0]].double()
        output[b, h] += a * value
        missing = (other / left if left > 0 else other * 0) - value
        if factors is not None:
            missing = factors[h].double() @ missing
        power = missing.norm() ** tau
        error[b, h] = a * power * left.clamp_min(2**-60) ** (tau - 1)
    return output, error


def check(device, *given, tau=1.0):
    on = (None if each is None else each.to(device) for each in given)
    found = largest_error(*on, tau=tau)
    for actual, expected in zip(found, naive(*given, tau), strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.sampled(3, "shape", "dtype", "tau", "projected", "program_order", "form")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.usefixtures("program_order")
def test_output_and_error_follow_the_formula(shape, dtype, tau, projected, device):
    *given, factors = example(*shape, dtype)
    check(device, *given, factors if projected else None, tau=tau)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_a_position_that_has_all_attention_is_compared_with_nothing(tau, device):
    others, weight, _, place, values, factors = example(1, 2, 1, 5, 8, 8)
    nothing = torch.zeros_like(weight)
    check(device, others * 0, weight * 0 + 1, nothing, place, values, factors, tau=tau)


@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
def test_a_value_like_the_others_costs_nothing(tau, device):
    _, weight, rest, place, values, factors = example(1, 2, 1, 5, 8, 8)
    others = torch.ones(1, 2, 8) * rest.fill_(0.5)
    given = [each.to(device) for each in (others, weight, rest, place, values.fill_(1), factors)]
    assert largest_error(*given, tau=tau).error.count_nonzero() == 0


def test_any_layout_is_taken(layout, device):
    others, weight, rest, place, values, factors = example(2, 4, 2, 9, 16, 16)
    check(device, others, weight, rest, place, layout(values), factors.mT.contiguous().mT)


def test_a_sequence_ignores_its_batch_mates(device):
    *rows, factors = (each.to(device) for each in example(3, 4, 2, 9, 16, 16))
    together = largest_error(*rows, factors)
    alone = largest_error(*(each[1:2] for each in rows), factors)
    for whole, one in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], one, rtol=1e-6, atol=1e-7)


def test_arguments_that_do_not_fit_are_an_error(refused):
    others, weight, rest, place, values, factors = example(1, 4, 2, 9, 8, 8)
    with refused("do not fit"):
        largest_error(others, weight[:, 1:], rest, place, values, factors)
    with refused("do not fit"):
        largest_error(others, weight, rest, place, values[..., 1:], factors)
    with refused("do not divide among 3 key/value heads"):
        largest_error(others, weight, rest, place, values[:, [0, 1, 1]], factors)
    with refused("factors"):
        largest_error(others, weight, rest, place, values, factors[1:])
    with refused("tau must be above 0, not 0"):
        largest_error(others, weight, rest, place, values, factors, tau=0)
