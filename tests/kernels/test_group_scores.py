import pytest
import torch

from kvpolicy_kernels import group_scores, protect_scores

pytestmark = pytest.mark.usefixtures("form")
INF = torch.inf


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
@pytest.mark.parametrize("shape", [(2, 6, 2, 17), (1, 3, 3, 5), (1, 4, 1, 1030)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("program_order")
def test_groups_are_reduced_in_any_order_alike(how, shape, dtype, device):
    batch, heads, kv_heads, positions = shape
    scores = torch.randn(batch, heads, positions).to(dtype)
    wide = scores.double().unflatten(1, (kv_heads, -1))
    expected = {"mean": wide.mean(2), "sum": wide.sum(2), "max": wide.amax(2)}[how]
    actual = group_scores(scores.to(device), kv_heads, how)
    assert torch.equal(actual.cpu(), expected.to(dtype))


def test_equal_scores_stay_equal_whatever_their_order(device):
    scores = torch.randn(1, 7, 50)
    found = group_scores(torch.cat([scores, scores.flip(1)], 1).to(device), 2, "mean")
    assert torch.equal(found[:, 0], found[:, 1])


def test_what_is_no_number_stays_so(device):
    scores = torch.tensor([[[torch.nan, -INF, INF], [1.0, 2.0, 3.0]]]).to(device)
    assert group_scores(scores, 1, "max")[0, 0].tolist()[1:] == [2, INF]
    for how in ("max", "mean", "sum"):
        assert group_scores(scores, 1, how)[0, 0, 0].isnan()


@pytest.mark.parametrize(("before", "since"), [(0, None), (3, None), (0, 30), (4, 31), (0, 0)])
@pytest.mark.usefixtures("program_order")
def test_positions_beyond_either_bound_are_protected(before, since, device):
    scores = torch.randn(2, 3, 20)
    positions = torch.randint(-1, 40, (2, 3, 20))
    inside = ((positions < before) & (before > 0)) | (positions >= (40 if since is None else since))
    found = protect_scores(scores.to(device), positions.to(device), before=before, since=since)
    assert torch.equal(found.cpu(), scores.where(~inside, torch.tensor(INF)))


def test_scores_are_copied_and_may_have_any_strides(device):
    scores = torch.randn(7, 4, 2).to(device).permute(2, 1, 0)
    positions = torch.arange(7).to(device).expand(2, 4, 7)
    before = scores.clone()
    found = protect_scores(scores, positions, before=2)
    assert torch.equal(scores, before)
    assert torch.equal(found[..., 2:], before[..., 2:])
    assert found[..., :2].eq(INF).all()


def test_nothing_stays_nothing(device):
    nothing = torch.empty(0, 4, 3, device=device)
    assert group_scores(nothing, 2, "mean").shape == (0, 2, 3)
    assert protect_scores(nothing, nothing.long()).shape == (0, 4, 3)


def test_what_cannot_be_is_refused(refused):
    with refused("3 query heads do not divide among 2"):
        group_scores(torch.zeros(1, 3, 1), 2, "mean")
    with refused("how must be 'mean', 'max' or 'sum', not 'min'"):
        group_scores(torch.zeros(1, 2, 1), 2, "min")
    with refused(r"positions \(1, 1, 2\) do not fit"):
        protect_scores(torch.zeros(1, 1, 1), torch.zeros(1, 1, 2).long())
