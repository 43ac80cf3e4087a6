import pytest
import torch

from kvpolicy_kernels import largest_error
from kvpolicy_kernels.common.triton import launch

pytestmark = pytest.mark.usefixtures("form")

# Batch, query heads, key/value heads, positions, channels, rank.
SHAPES = [
    (1, 1, 1, 1, 4, 4),
    (2, 6, 2, 17, 24, 24),
    (1, 4, 4, 9, 130, 70),
    (3, 2, 1, 30, 8, 1),
    (1, 2, 1, 2100, 8, 8),
]


def example(batch, heads, kv_heads, positions, dim, rank, dtype=torch.float32):
    attention = (4 * torch.randn(batch, heads, positions)).softmax(-1)
    values = torch.randn(batch, kv_heads, positions, dim).to(dtype)
    return attention, values, torch.randn(heads, rank, dim)


def naive(attention, values, factors, *, summed, tau=1.0, learned_sinks=False):
    """One head after another, in float64."""
    (batch, heads), group = attention.shape[:2], attention.shape[1] // values.shape[1]
    place = torch.zeros(batch, heads, 1, dtype=torch.int64)
    output = torch.zeros(batch, heads, values.shape[-1], dtype=torch.float64)
    error = torch.zeros(batch, heads, 1, dtype=torch.float64)
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)):
        row, of_head = attention[b, h].double(), values[b, h // group].double()
        at = place[b, h] = row[:summed].argmax()
        a, others = row[at], row.index_fill(0, at, 0)
        rest = 1 - a if learned_sinks else others.sum()
        output[b, h] = row[:summed] @ of_head[:summed]
        mean = others[:summed] @ of_head[:summed] / rest if rest > 0 else 0
        missing = mean - of_head[at]
        if factors is not None:
            missing = factors[h].double() @ missing
        error[b, h] = a * missing.norm() ** tau * rest.clamp_min(2**-60) ** (tau - 1)
    return place, output, error


def check(device, *given, **options):
    options = {"summed": given[0].shape[-1], **options}
    on = (None if each is None else each.to(device) for each in given)
    found = largest_error(*on, **options)
    place, *expected = naive(*given, **options)
    assert torch.equal(found.place.cpu(), place)
    for actual, exact in zip(found[1:], expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.cpu().double(), exact, rtol=2e-5, atol=1e-6)


@pytest.mark.sampled(3, "shape", "dtype", "tau", "projected", "program_order", "form")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.usefixtures("program_order")
def test_output_and_error_follow_the_formula(shape, dtype, tau, projected, device):
    *given, factors = example(*shape, dtype)
    check(device, *given, factors if projected else None, tau=tau)


@pytest.mark.parametrize("summed", [1, 12, 17])
@pytest.mark.parametrize("learned_sinks", [True, False])
def test_the_output_may_be_that_of_the_first_positions(summed, learned_sinks, device):
    attention, *rest = example(2, 6, 2, 17, 24, 24)
    share = 0.7 if learned_sinks else 1
    check(device, attention * share, *rest, summed=summed, learned_sinks=learned_sinks)


@pytest.mark.parametrize("programs", [1, 3, 1000])
@pytest.mark.usefixtures("program_order")
def test_how_positions_split_among_programs_does_not_matter(programs, monkeypatch, device):
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    check(device, *example(1, 4, 2, 150, 16, 16))


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_a_position_that_has_all_attention_is_compared_with_nothing(tau, device):
    attention, values, factors = example(1, 2, 1, 5, 8, 8)
    alone = torch.zeros_like(attention).index_fill(-1, torch.tensor([3]), 1)
    check(device, alone, values, factors, tau=tau)


def test_of_equal_weights_the_first_one_counts(device):
    attention = torch.full((1, 2, 2100), 1 / 2100)
    attention[0, 0, [700, 2090]] = 0.25
    found = largest_error(
        attention.to(device), torch.randn(1, 1, 2100, 4).to(device), None, summed=2100
    )
    assert found.place.flatten().tolist() == [700, 0]


@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
def test_a_value_like_the_others_costs_nothing(tau, device):
    attention = torch.tensor([[[0.5, 0.25, 0.25]]])
    given = [each.to(device) for each in (attention, torch.ones(1, 1, 3, 8), torch.ones(1, 8, 8))]
    assert largest_error(*given, summed=3, tau=tau).error.count_nonzero() == 0


def test_any_layout_is_taken(layout, device):
    attention, values, factors = example(2, 4, 2, 9, 16, 16)
    strided = attention.mT.contiguous().mT
    check(device, strided, layout(values), factors.mT.contiguous().mT)


def test_a_sequence_ignores_its_batch_mates(device):
    *rows, factors = (each.to(device) for each in example(3, 4, 2, 150, 16, 16))
    together = largest_error(*rows, factors, summed=150)
    alone = largest_error(*(each[1:2] for each in rows), factors, summed=150)
    for whole, one in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], one, rtol=1e-6, atol=1e-7)


def test_of_no_sequence_nothing_is_found(device):
    none = torch.ones(0, 2, 3).to(device), torch.ones(0, 1, 3, 4).to(device), None
    found = largest_error(*none, summed=3)
    assert [tuple(each.shape) for each in found] == [(0, 2, 1), (0, 2, 4), (0, 2, 1)]


def test_arguments_that_do_not_fit_are_an_error(refused):
    attention, values, factors = example(1, 4, 2, 9, 8, 8)
    with refused("differ in batch or positions"):
        largest_error(attention[..., 1:], values, factors, summed=8)
    with refused("do not divide among 3 key/value heads"):
        largest_error(attention, values[:, [0, 1, 1]], factors, summed=9)
    with refused("factors"):
        largest_error(attention, values, factors[1:], summed=9)
    with refused("tau must be above 0, not 0"):
        largest_error(attention, values, factors, summed=9, tau=0)
    for summed in (0, 10):
        with refused(f"summed must be in 1 ... 9, the positions, not {summed}"):
            largest_error(attention, values, factors, summed=summed)
