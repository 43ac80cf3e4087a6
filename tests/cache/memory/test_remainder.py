import pytest
import torch

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.remainder import Remainder, joined
from kvpolicy.errors import CacheStateError
from kvpolicy.testing.samples import normal


def mean_of(rows):
    """The remainder of rows [B, N, S, D], whose values are their negatives."""
    batch, heads, count, _ = rows.shape
    counts = torch.full((batch, heads), count)
    mean = rows.mean(2) if count else rows.sum(2)
    return Remainder(keys=mean, values=-mean, counts=counts)


@pytest.mark.parametrize("sizes", [(3, 5), (1, 40), (7, 0), (0, 7)])
def test_two_remainders_are_the_mean_of_all_rows(sizes):
    rows = normal(0, 2, 3, sum(sizes), 4)
    old, new = rows.split(sizes, 2)
    both = mean_of(old).with_more(mean_of(new))
    torch.testing.assert_close(both.keys, rows.mean(2))
    torch.testing.assert_close(both.values, -rows.mean(2))
    assert (both.counts == sum(sizes)).all()


def test_nothing_new_changes_no_bit():
    old = mean_of(normal(0, 2, 3, 5, 4))
    same = old.with_more(mean_of(normal(1, 2, 3, 0, 4)))
    assert torch.equal(same.keys, old.keys)
    assert torch.equal(same.values, old.values)


def test_one_row_at_a_time_adds_up_to_the_mean():
    rows = normal(0, 1, 1, 3000, 8)
    found = mean_of(rows[:, :, :1])
    for row in rows[:, :, 1:].split(1, 2):
        found = found.with_more(mean_of(row))
    torch.testing.assert_close(found.keys, rows.double().mean(2).float(), rtol=1e-5, atol=1e-6)
    assert found.counts.item() == 3000


def test_the_bias_is_the_logarithm_of_the_count():
    counts = torch.tensor([[0, 1, 20]])
    remainder = Remainder(keys=torch.ones(1, 3, 2), values=torch.ones(1, 3, 2), counts=counts)
    expected = torch.tensor([[-torch.inf, 0.0, 2.995732]])
    torch.testing.assert_close(remainder.bias, expected)


def test_heads_and_sequences_are_joined_and_chosen():
    rows = normal(0, 2, 3, 5, 4)
    by_row = [
        joined([mean_of(rows[row : row + 1, head : head + 1]) for head in range(3)], 1)
        for row in (0, 1)
    ]
    whole = joined(by_row, 0)
    assert torch.equal(whole.keys, mean_of(rows).keys)
    chosen = whole.select_rows(torch.tensor([1, 1, 0]))
    assert torch.equal(chosen.values, whole.values[[1, 1, 0]])
    assert torch.equal(chosen.counts, whole.counts[[1, 1, 0]])


def held(positions, seen):
    """Contents of one sequence and as many heads as there are lists of positions."""
    rows = normal(0, 1, len(positions), len(positions[0]), 4)
    contents = Contents.of(rows, rows)
    contents.slots.replace(torch.tensor([positions]), [len(positions[0])])
    contents.slots.seen = [seen]
    counts = torch.full((1, len(positions)), seen - len(positions[0]))
    contents.remainder = Remainder(keys=rows[:, :, 0], values=rows[:, :, 0], counts=counts)
    return contents


def test_tokens_that_all_heads_hold_can_be_cropped():
    contents = held([[0, 3, 8, 9], [1, 2, 8, 9]], 10)
    contents.forget_last(2)
    assert contents.slots.positions.tolist() == [[[0, 3], [1, 2]]]
    assert contents.remainder.counts.tolist() == [[6, 6]]


@pytest.mark.parametrize("positions", [[[0, 3, 7, 9], [1, 2, 6, 9]], [[0, 1, 2, 3]]])
def test_a_crop_of_tokens_that_the_remainder_stands_for_is_refused(positions):
    contents = held(positions, 10)
    before = contents.slots.positions.clone()
    with pytest.raises(CacheStateError, match=r"cannot crop 2 tokens: \d of them were evicted"):
        contents.forget_last(2)
    assert torch.equal(contents.slots.positions, before)


def test_a_remainder_is_counted_in_the_bytes():
    contents = held([[0, 3, 8, 9], [1, 2, 8, 9]], 10)
    with_it = contents.nbytes
    contents.remainder = None
    # Of two heads: a key and a value of 4 floats, and a count of 8 bytes.
    assert with_it - contents.nbytes == 2 * (2 * 4 * 4 + 8)
