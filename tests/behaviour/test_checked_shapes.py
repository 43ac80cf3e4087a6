"""Tests check the shapes in signatures, at each function's first calls of a test."""

import pytest
import shapes
import torch
from jaxtyping import TypeCheckError

from kvpolicy_kernels import pool_scores

RIGHT, WRONG = torch.ones(1, 2, 6), torch.ones(2, 6)


def test_a_tensor_of_another_shape_is_found():
    with pytest.raises(TypeCheckError, match="pool_scores"):
        pool_scores(WRONG, 3)


# `make deep` checks all calls, so there are no later ones that are not.
@pytest.mark.skipif(shapes.EVERY_CALL, reason="all calls are checked here")
def test_later_calls_of_a_test_are_not_checked():
    for _ in range(shapes.CALLS):
        pool_scores(RIGHT, 3)
    with pytest.raises(IndexError, match="out of range"):
        pool_scores(WRONG, 3)


def test_what_names_no_shape_is_left_as_it_is():
    def plain(count: int) -> int:
        return count

    assert shapes._counted(plain, typechecker=shapes.checked) is plain
