import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpolicy_kernels import select

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
    with refused("count must not be negative: -1"):
        select(torch.zeros(1, 2, 4), torch.ones(1, 2).int(), count=-1)
