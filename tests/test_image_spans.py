"""Runs of an image token are spans; what is no token id is refused."""

import numpy as np
import pytest
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.image_spans import find_spans


def test_runs_of_the_image_token_are_found_in_each_row_without_its_padding():
    ids = torch.tensor([[0, 0, 5, 9, 9, 6], [9, 9, 5, 8, 9, 9]])
    mask = (ids != 0).long()
    assert find_spans(ids, 9, attention_mask=mask) == [
        {"image 1": (1, 3)},
        {"image 1": (0, 2), "image 2": (4, 6)},
    ]
    assert find_spans(ids[1], [8, 9], name="sound") == [{"sound 1": (0, 2), "sound 2": (3, 6)}]
    assert find_spans(ids, 7) == [{}, {}]


def test_images_side_by_side_are_told_apart_by_their_size():
    found = find_spans([9, 9, 9, 9, 9, 9, 5], 9, tokens=3)
    assert found == [{"image 1": (0, 3), "image 2": (3, 6)}]


def test_an_image_that_truncation_has_cut_is_refused():
    with pytest.raises(InvalidValueError, match=r"image 2 has 2 of 3 tokens.*truncation=False"):
        find_spans([9, 9, 9, 5, 9, 9], 9, tokens=3)


@pytest.mark.parametrize("ids", ["text", [[1.5]], None, [["a"]], 4, []])
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(InvalidValueError, match="ids must be ints"):
        find_spans(ids, 9)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InvalidValueError, match="the shape of ids"):
        find_spans([1, 2], 2, attention_mask=[1])


@pytest.mark.parametrize("token", [np.int64(9), torch.tensor(9), torch.tensor([8, 9]), {9}])
def test_ids_may_come_from_any_library(token):
    assert find_spans([5, 9, 9], token) == [{"image 1": (1, 3)}]


@pytest.mark.parametrize("token", [None, 9.0, True, "<image>", ["<image>"], []])
def test_what_is_no_token_id_is_refused(token):
    with pytest.raises(InvalidValueError, match="image_token_id, or several ids, not"):
        find_spans([5, 9, 9], token)


@pytest.mark.parametrize("tokens", [0, -2, 2.0, "2", True])
def test_what_is_no_number_of_tokens_is_refused(tokens):
    with pytest.raises(InvalidValueError, match="an int of at least 1, or None"):
        find_spans([5, 9, 9], 9, tokens=tokens)
