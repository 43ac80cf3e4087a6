"""What layers leave is counted for each row, and begins anew with each forward."""

import torch

from kvpolicy.cache.eviction.spare import Spare


def test_rows_are_counted_apart_over_layers():
    spare = Spare()
    spare.leave(slice(0, 2), torch.tensor([[1, 2], [4, 4]]), 4)
    spare.leave(slice(2, 3), torch.tensor([[0, 0]]), 1)
    spare.leave(slice(0, 1), torch.tensor([[6, 5]]), 4)
    assert spare.of(slice(0, 4)).tolist() == [2, 0, 2, 0]
    spare.begin()
    assert spare.of(slice(0, 3)).tolist() == [0, 0, 0]


def test_what_is_handed_out_is_a_copy():
    spare = Spare()
    spare.of(slice(0, 2)).fill_(7)
    assert spare.of(slice(0, 2)).tolist() == [0, 0]
