import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kvpolicy_kernels import pool_scores

options = pytest.mark.parametrize(
    ("mode", "edges"),
    [("avg", "replicate"), ("avg", "zero"), ("max", "replicate"), ("max", "zero")],
)


def naive(row, width, shift, mode, edges):
    """The formula, one position at a time."""
    outside = 0.0 if mode == "avg" else float("-inf")
    pooled = []
    for j in range(len(row)):
        places = range(j - width // 2 + shift, j + width // 2 + shift + 1)
        if edges == "replicate":
            seen = [row[min(max(u, 0), len(row) - 1)] for u in places]
        else:
            seen = [row[u] if 0 <= u < len(row) else outside for u in places]
        pooled.append(max(seen) if mode == "max" else sum(seen) / width)
    return pooled


@options
@settings(deadline=None)
@given(
    positions=st.integers(1, 40),
    widths=st.lists(st.integers(0, 30).map(lambda half: 2 * half + 1), min_size=6, max_size=6),
    shifts=st.lists(st.integers(-45, 45), min_size=6, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_matches_the_formula(mode, edges, positions, widths, shifts, seed):
    scores = torch.rand(2, 3, positions, generator=torch.Generator().manual_seed(seed))
    width_of, shift_of = torch.tensor(widths).view(2, 3), torch.tensor(shifts).view(2, 3)
    pooled = pool_scores(scores, width_of, shift_of, mode=mode, edges=edges)
    expected = [
        naive(row, *pair, mode, edges)
        for row, *pair in zip(scores.double().view(6, -1).tolist(), widths, shifts, strict=True)
    ]
    torch.testing.assert_close(
        pooled.double(), torch.tensor(expected).view(2, 3, -1).double(), rtol=1e-6, atol=0
    )


@options
@pytest.mark.parametrize("width", [1, 5, 33])
@pytest.mark.parametrize("shift", [0, -2])
def test_a_shared_width_is_the_same_as_one_for_each_head(mode, edges, width, shift):
    scores = torch.rand(2, 3, 50).transpose(0, 1)
    shared = pool_scores(scores, width, shift, mode=mode, edges=edges)
    each = pool_scores(
        scores, torch.full((3, 2), width), torch.full((3, 2), shift), mode=mode, edges=edges
    )
    assert torch.equal(shared, each)


@pytest.mark.parametrize("width", [3, 7, 129])
def test_without_a_shift_it_is_the_pooling_of_torch(width):
    scores = torch.rand(2, 3, 300)
    half, exact = width // 2, scores.double()
    padded = functional.pad(exact, (half, half), mode="replicate")
    torch.testing.assert_close(
        pool_scores(scores, width, edges="zero"),
        functional.avg_pool1d(exact, width, 1, half).float(),
        rtol=1e-6,
        atol=0,
    )
    torch.testing.assert_close(
        pool_scores(scores, width),
        functional.avg_pool1d(padded, width, 1).float(),
        rtol=1e-6,
        atol=0,
    )
    assert torch.equal(
        pool_scores(scores, width, mode="max", edges="zero"),
        functional.max_pool1d(scores, width, 1, half),
    )


@pytest.mark.parametrize("huge", [1e30, float("inf")])
@pytest.mark.parametrize("width", [1, 5, 31, 65])
@pytest.mark.parametrize("shift", [0, 2])
def test_a_huge_score_stays_in_its_windows(huge, width, shift):
    scores = torch.full((1, 1, 300), 1e-6)
    clean = pool_scores(scores, width, shift)
    scores[0, 0, 150] = huge
    pooled = pool_scores(scores, width, shift)
    reached = torch.zeros(300, dtype=torch.bool)
    reached[150 - shift - width // 2 : 150 - shift + width // 2 + 1] = True
    assert torch.equal(pooled[0, 0, ~reached], clean[0, 0, ~reached])
    assert (pooled[0, 0, reached] >= huge / width * 0.999).all()


def test_a_shift_moves_beyond_a_narrow_window():
    scores = torch.tensor([[[1.0, 2, 3]]])
    assert pool_scores(scores, 1, 1).flatten().tolist() == [2, 3, 3]
    assert pool_scores(scores, 1, -5).flatten().tolist() == [1, 1, 1]
    assert pool_scores(scores, 1, 1, edges="zero").flatten().tolist() == [2, 3, 0]


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4)])
def test_nothing_pools_to_nothing(shape):
    assert pool_scores(torch.zeros(shape), 3).shape == shape


def test_scores_stay_as_they_are():
    scores = torch.rand(1, 2, 20)
    before = scores.clone()
    pool_scores(scores, 1)[:] = 0
    pool_scores(scores, 5)[:] = 0
    assert torch.equal(scores, before)


@pytest.mark.parametrize("width", [0, -3, 4])
def test_a_width_without_a_middle_is_an_error(width, refused):
    for widths in (width, torch.tensor([[3, width]])):
        with refused(f"odd and at least 1: {width}"):
            pool_scores(torch.zeros(1, 2, 5), widths)


def test_unknown_options_are_an_error(refused):
    with refused("'sum'"):
        pool_scores(torch.zeros(1, 2, 5), 3, mode="sum")
    with refused("'wrap'"):
        pool_scores(torch.zeros(1, 2, 5), 3, edges="wrap")
    with refused(r"widths \(1, 3\) do not fit"):
        pool_scores(torch.zeros(1, 2, 5), torch.ones(1, 3).int())
