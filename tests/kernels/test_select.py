import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpolicy_kernels import select, unselected
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.select import reference

INFINITY = float("inf")
SCORES = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, INFINITY, -INFINITY, float("nan")])


def naive(row, budget, count):
    """Sort by score, then by position."""
    order = sorted(range(len(row)), key=lambda i: (INFINITY if row[i] != row[i] else -row[i], i))
    kept = sorted(order[: max(0, min(budget, count))])
    return kept + [len(row)] * (count - len(kept))


@settings(deadline=None)
@given(data=st.data(), positions=st.integers(0, 12), dtype=st.sampled_from(["float32", "float64"]))
def test_keeps_the_best_of_every_row_and_the_lower_of_equals(data, positions, dtype):
    rows = data.draw(
        st.lists(st.lists(SCORES, min_size=positions, max_size=positions), min_size=4, max_size=4)
    )
    budgets = data.draw(st.lists(st.integers(0, 14), min_size=4, max_size=4))
    count = data.draw(st.none() | st.integers(0, 15))
    scores = torch.tensor(rows, dtype=getattr(torch, dtype)).view(2, 2, positions)

    selected = select(scores, torch.tensor(budgets).view(2, 2), count=count)

    width = max(budgets) if count is None else count
    expected = [naive(row, budget, width) for row, budget in zip(rows, budgets, strict=True)]
    assert selected.dtype == torch.int64
    assert selected.tolist() == torch.tensor(expected).view(2, 2, width).tolist()


@pytest.mark.parametrize("budget", [1, 50, 999, 1000])
def test_matches_a_stable_sort(budget):
    scores = torch.randint(0, 50, (2, 3, 1000)).float()
    budgets = torch.full((2, 3), budget, dtype=torch.int32)
    expected = scores.argsort(dim=-1, descending=True, stable=True)[..., :budget].sort(-1).values
    assert torch.equal(select(scores, budgets, count=budget), expected)


def test_what_must_be_kept_wins_and_padding_loses():
    scores = torch.tensor([[[5.0, INFINITY, -INFINITY, 1, INFINITY, float("nan")]]])
    for budget, kept in [(1, [1]), (3, [0, 1, 4]), (5, [0, 1, 2, 3, 4])]:
        assert select(scores, torch.tensor([[budget]])).flatten().tolist() == kept


def test_scores_stay_as_they_are():
    scores = torch.tensor([[[float("nan"), 1.0]]])
    select(scores, torch.tensor([[1]]))
    assert scores.isnan().flatten().tolist() == [True, False]


def test_arguments_that_do_not_fit_are_an_error(refused):
    with refused(r"budgets \(1, 3\) do not fit"):
        select(torch.zeros(1, 2, 4), torch.ones(1, 3).int())
    with refused("count must be at least 0, not -1"):
        select(torch.zeros(1, 2, 4), torch.ones(1, 2).int(), count=-1)


SHAPES = [(2, 3, 1), (2, 3, 37), (1, 2, 2048), (1, 3, 4999)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
kernel = pytest.mark.usefixtures("triton_kernels", "program_order")


def uneven(shape):
    """Budgets of none, one, some, all and more than all positions."""
    positions = shape[-1]
    return torch.tensor([0, positions + 5, positions // 3, 1, positions, 2])[: shape[0] * shape[1]]


def check_kernel(scores, budgets, device, count=None):
    expected = reference.select(scores, budgets, count=count)
    actual = select(scores.to(device), budgets.to(device), count=count)
    assert actual.dtype == torch.int64
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.sampled(3, "shape", "dtype", "program_order")
@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@kernel
def test_the_kernel_matches_the_reference(shape, dtype, device):
    scores = torch.randn(shape).to(dtype)
    scores[..., ::3] = scores[..., ::3].round()
    budgets = uneven(shape).view(shape[:2])
    for count in (None, shape[-1] // 2, shape[-1] + 3):
        check_kernel(scores, budgets, device, count)


@pytest.mark.parametrize("shape", [(2, 3, 37), (1, 3, 2049)], ids=str)
@kernel
def test_the_kernel_breaks_ties_between_special_numbers_alike(shape, device):
    tiny, huge = torch.finfo().smallest_normal / 4, torch.finfo().max
    special = [0.0, -0.0, 1.0, -1.0, INFINITY, -INFINITY, float("nan"), tiny, -tiny, huge, -huge]
    scores = torch.tensor(special)[torch.randint(len(special), shape)]
    check_kernel(scores, uneven(shape).int().view(shape[:2]), device)


@kernel
def test_the_kernel_orders_all_bits_of_a_number(device):
    scores = torch.randint(-(2**31), 2**31, (1, 4, 3000)).int().view(torch.float32)
    scores[0, 2:] = 1 + torch.randint(2**12, (2, 3000)) * torch.finfo().eps
    check_kernel(scores, torch.tensor([[1, 1500, 700, 2999]]), device)


@pytest.mark.sampled(2, "budget", "program_order")
@kernel
@pytest.mark.parametrize("budget", [0, 1, 30, 70])
def test_equal_budgets_of_the_host_are_taken_as_they_are(budget, device):
    scores = torch.randint(0, 9, (2, 3, 60)).float()
    budgets = torch.full((2, 3), budget, dtype=torch.int32)
    for count in (None, 40):
        expected = reference.select(scores, budgets, count=count)
        assert torch.equal(select(scores.to(device), budgets, count=count).cpu(), expected)


@kernel
def test_the_kernel_takes_any_layout(device):
    scores = torch.randn(2, 50, 2).to(device)[:, ::2].mT
    budgets = torch.arange(12).to(device).view(3, 4)[1:, ::2].T
    assert torch.equal(select(scores, budgets), reference.select(scores, budgets))


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4), (2, 0, 4)], ids=str)
@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_finds_nothing_in_nothing(shape, device):
    for count in (None, 0, 3):
        check_kernel(torch.zeros(shape), torch.ones(shape[:2]).long(), device, count)


@pytest.mark.usefixtures("triton_kernels")
def test_scores_in_double_precision_have_no_kernel(device):
    scores = torch.tensor([[[1.0, 1 + 1e-12]]], dtype=torch.float64, device=device)
    with pytest.warns(KernelFallbackWarning, match="select runs in PyTorch.*float64"):
        assert select(scores, torch.ones(1, 1, device=device).int()).item() == 1


# PyTorch reports waits for CUDA devices only. `python -m benchmarks.waits` counts without one.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CPU is never waited for")
@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_waits_for_nothing(device):
    scores, budgets = torch.randn(2, 8, 5000, device=device), torch.ones(2, 8, device=device).int()
    select(scores, budgets, count=100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        select(scores, budgets, count=100)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def left_over(row, length, count):
    left = [s for s in range(length) if s not in row]
    return left + [length] * (count - len(left))


@pytest.mark.parametrize("counts", [[1, 1], [0, 5], [259, 3], [260, 260]], ids=str)
@pytest.mark.parametrize("length", [260, 700])
@pytest.mark.usefixtures("form", "program_order")
def test_positions_that_are_left_are_all_others(length, counts, device):
    kept = max(counts)
    heads = [sorted(torch.randperm(length)[:count].tolist()) for count in counts]
    rows = [head + [length] * (kept - len(head)) for head in heads]
    for spare in (0, 3):
        count = length - min(counts) + spare
        found = unselected(torch.tensor([rows]).view(1, 2, kept).to(device), length, count)
        assert found.tolist() == [[left_over(head, length, count) for head in heads]]


@pytest.mark.usefixtures("form")
def test_without_rows_all_are_left_and_without_positions_none(device):
    rows = torch.zeros(2, 1, 0, dtype=torch.int64, device=device)
    assert unselected(rows, 3, 4).tolist() == [[[0, 1, 2, 3]]] * 2
    assert unselected(rows, 0, 2).tolist() == [[[0, 0]]] * 2
    assert unselected(rows, 0, 0).shape == (2, 1, 0)


def test_negative_sizes_are_an_error(refused):
    rows = torch.zeros(1, 1, 1, dtype=torch.int64)
    with refused("length must be at least 0, not -1"):
        unselected(rows, -1, 1)
    with refused("count must be at least 0, not -1"):
        unselected(rows, 1, -1)
