import pytest
import torch

from kvpolicy_kernels import token_shares

pytestmark = pytest.mark.usefixtures("form")


def naive(scores, count, first):
    """One sequence after another, in float64."""
    places, shares = [], []
    for row in scores.double():
        means = row.mean(0)
        order = sorted(range(first, len(means)), key=lambda place: (-means[place], place))
        chosen = sorted(order[:count])
        squares = means[chosen].square()
        places.append(chosen)
        shares.append(squares / squares.sum())
    return torch.tensor(places), torch.stack(shares)


@pytest.mark.sampled(4, "shape", "dtype", "program_order", "form")
@pytest.mark.parametrize(
    ("shape", "count", "first"),
    [((1, 1, 1), 1, 0), ((2, 6, 17), 5, 1), ((3, 4, 700), 64, 1), ((1, 3, 2500), 2400, 9)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("program_order")
def test_the_largest_means_are_chosen_and_their_squares_shared(shape, count, first, dtype, device):
    scores = torch.rand(shape).to(dtype)
    wide = scores.float()
    found = token_shares(wide.to(device), count, first=first)
    places, shares = naive(wide, count, first)
    assert torch.equal(found.places.cpu(), places)
    torch.testing.assert_close(found.shares.cpu().double(), shares, rtol=1e-5, atol=1e-9)


def test_small_and_large_scores_have_the_same_shares(device):
    scores = torch.rand(1, 4, 30).to(device)
    expected = token_shares(scores, 7)
    for scale in (2.0**-100, 2.0**100):
        found = token_shares(scores * scale, 7)
        assert torch.equal(found.places, expected.places)
        torch.testing.assert_close(found.shares, expected.shares)


def test_of_equal_means_the_first_are_chosen(device):
    found = token_shares(torch.ones(2, 3, 3000).to(device), 4, first=2)
    assert found.places.tolist() == [[2, 3, 4, 5]] * 2
    assert found.shares.tolist() == [[0.25] * 4] * 2


def test_scores_of_nothing_give_no_shares(device):
    found = token_shares(torch.zeros(1, 2, 9).to(device), 3)
    assert found.places.tolist() == [[0, 1, 2]]
    assert found.shares.tolist() == [[0.0] * 3]


def test_scores_may_have_any_strides_and_stay_as_they_are(device):
    scores = torch.rand(40, 4, 2).to(device).permute(2, 1, 0)
    before = scores.clone()
    found, expected = token_shares(scores, 6), token_shares(before, 6)
    assert torch.equal(scores, before)
    assert torch.equal(found.places, expected.places)
    torch.testing.assert_close(found.shares, expected.shares)


def test_a_sequence_ignores_its_batch_mates(device):
    scores = torch.rand(3, 4, 50).to(device)
    together, alone = token_shares(scores, 6), token_shares(scores[1:2], 6)
    assert torch.equal(together.places[1:2], alone.places)
    assert torch.equal(together.shares[1:2], alone.shares)


def test_of_no_sequence_nothing_is_chosen(device):
    found = token_shares(torch.ones(0, 2, 5).to(device), 3)
    assert found.places.shape == found.shares.shape == (0, 3)


def test_what_cannot_be_is_refused(refused):
    for count in (0, 4):
        with refused(f"count must be in 1 ... 3, the positions, not {count}"):
            token_shares(torch.zeros(1, 1, 5), count, first=2)
    with refused("first must be in 0 ... 5, the positions, not 6"):
        token_shares(torch.zeros(1, 1, 5), 1, first=6)
