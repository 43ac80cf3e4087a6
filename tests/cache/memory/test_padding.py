"""Padding that is counted, and padding that is refused."""

import pytest
import torch

from kvpolicy.cache.memory.padding import padding_counts
from kvpolicy.errors import InvalidValueError

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()


def test_padding_is_counted_on_the_left_only():
    assert padding_counts(PADDED, [False, False]) == [0, 4]
    with pytest.raises(InvalidValueError, match="row 1"):
        padding_counts(PADDED.flip(1), [False, False])
    with pytest.raises(InvalidValueError, match="row 1"):
        padding_counts(PADDED, [True, True])
