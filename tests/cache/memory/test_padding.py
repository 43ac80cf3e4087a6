"""Padding that is counted, and padding that is refused."""

import pytest
import torch

from kvpolicy.cache.memory.padding import check_some_real, padding_counts
from kvpolicy.errors import InvalidValueError

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()


def test_padding_is_counted_on_the_left_only():
    assert padding_counts(PADDED) == [0, 4]
    with pytest.raises(InvalidValueError, match="row 1"):
        padding_counts(PADDED.flip(1))


def test_a_row_without_a_token_is_named():
    check_some_real([0, 4], 6)
    with pytest.raises(InvalidValueError, match=r"row 1 .*no token in this turn"):
        check_some_real([0, 6], 6)
