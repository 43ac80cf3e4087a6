import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kvpolicy_kernels import pool_scores
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.pool_scores import reference

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


TIED = torch.rand(1, 3, 7, generator=torch.Generator().manual_seed(0)).repeat_interleave(100, -1)


@pytest.mark.parametrize("width", [3, 5, 9, 33, 65])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_of_equal_scores_are_equal_wherever_they_lie(width, shift):
    pooled = pool_scores(TIED, width, shift).unflatten(-1, (7, 100))
    inner = pooled[..., width // 2 : 100 - width // 2 - shift]
    assert torch.equal(inner, TIED[..., ::100, None].expand_as(inner))


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
        with refused(f"odd and at least 1, not {width}"):
            pool_scores(torch.zeros(1, 2, 5), widths)


def test_unknown_options_are_an_error(refused):
    with refused("'sum'"):
        pool_scores(torch.zeros(1, 2, 5), 3, mode="sum")
    with refused("'wrap'"):
        pool_scores(torch.zeros(1, 2, 5), 3, edges="wrap")
    with refused(r"widths \(1, 3\) do not fit"):
        pool_scores(torch.zeros(1, 2, 5), torch.ones(1, 3).int())


WIDTHS, SHIFTS = (
    torch.tensor([[1, 3, 31], [5, 61, 7]]),
    torch.tensor([[0, 1, -3], [2000, -2000, 4]]),
)
kernel = pytest.mark.usefixtures("triton_kernels", "program_order")


@pytest.mark.sampled(3, "positions", "mode", "edges", "program_order")
@options
@pytest.mark.parametrize("positions", [1, 20, 1030])
@kernel
def test_the_kernel_matches_the_formula(mode, edges, positions, device):
    scores = torch.rand(2, 3, positions)
    pooled = pool_scores(
        scores.to(device), WIDTHS.to(device), SHIFTS.int().to(device), mode=mode, edges=edges
    )
    expected = [
        naive(row, *pair, mode, edges)
        for row, *pair in zip(
            scores.double().flatten(0, 1).tolist(), WIDTHS.flatten().tolist(),
            SHIFTS.flatten().tolist(), strict=True,
        )
    ]  # fmt: skip
    # A sum of 61 numbers that are not negative errs by at most 61 roundings, of 2**-24 each.
    torch.testing.assert_close(
        pooled.double().cpu(), torch.tensor(expected).view(2, 3, -1).double(),
        rtol=61 * 2**-24, atol=0,
    )  # fmt: skip


@options
@kernel
def test_the_kernel_takes_what_all_heads_share_and_any_layout(mode, edges, device):
    scores = torch.rand(40, 2, 3, device=device)[::2].permute(1, 2, 0)
    for width, shift in ((1, 0), (5, -2)):
        shared = pool_scores(scores, width, shift, mode=mode, edges=edges)
        widths = torch.full((3, 2), width, device=device).T
        assert torch.equal(shared, pool_scores(scores, widths, shift, mode=mode, edges=edges))
        torch.testing.assert_close(
            shared, reference.pool_scores(scores, width, shift, mode=mode, edges=edges)
        )


@options
@kernel
def test_what_is_not_finite_stays_in_its_windows_in_the_kernel_too(mode, edges, device):
    scores = torch.rand(1, 3, 300)
    for head, odd in enumerate((float("nan"), float("inf"), 1e30)):
        scores[0, head, 150] = odd
    pooled = pool_scores(scores.to(device), 31, 2, mode=mode, edges=edges).cpu()
    torch.testing.assert_close(
        pooled, reference.pool_scores(scores, 31, 2, mode=mode, edges=edges), equal_nan=True
    )


@pytest.mark.parametrize("width", [5, 33])
@kernel
def test_windows_of_equal_scores_are_equal_in_the_kernel_too(width, device):
    pooled = pool_scores(TIED.to(device), width).unflatten(-1, (7, 100))
    inner = pooled[..., width // 2 : 100 - width // 2]
    assert torch.equal(inner, inner[..., :1].expand_as(inner))


@kernel
def test_widths_that_a_gpu_cannot_check_do_no_harm(device):
    scores, widths = torch.rand(1, 4, 20, device=device), torch.tensor([[4, 0, -3, -(2**40)]])
    shifts = torch.tensor([[2**40, -(2**62), 2**62, 0]], device=device)
    pooled = pool_scores(scores, widths.to(device), shifts)
    taken_for = torch.tensor([[5, 1, 1, 1]], device=device)
    assert torch.equal(pooled, pool_scores(scores, taken_for, shifts))
    assert torch.equal(pooled[0, 1:3, 7], scores[0, [1, 2], [0, 19]])


@pytest.mark.usefixtures("triton_kernels")
def test_what_the_host_can_check_is_checked_for_the_kernel_too(device):
    with pytest.raises(ValueError, match="odd and at least 1, not 4"):
        pool_scores(torch.zeros(1, 2, 5, device=device), 4)
    assert pool_scores(torch.zeros(2, 0, 4, device=device), 3).shape == (2, 0, 4)


@pytest.mark.usefixtures("triton_kernels")
def test_scores_of_another_dtype_have_no_kernel(device):
    scores = torch.ones(1, 1, 5, dtype=torch.bfloat16, device=device)
    with pytest.warns(KernelFallbackWarning, match="pools float32, not torch.bfloat16"):
        assert torch.equal(pool_scores(scores, 3), scores)


# PyTorch reports waits for CUDA devices only. `python -m benchmarks.waits` counts without one.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CPU is never waited for")
@pytest.mark.usefixtures("triton_kernels")
def test_the_kernel_waits_for_nothing(device):
    scores, widths = torch.rand(2, 3, 3000, device=device), WIDTHS.to(device)
    pool_scores(scores, widths, widths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pool_scores(scores, widths, widths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
