"""Spans are named ranges of positions; what is none is refused with the way out."""

import pytest
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.spans import Spans, checked_protect, checked_spans, find_spans


def test_ranges_are_sorted_by_their_first_token():
    assert list(Spans({"image": (40, 60), "system": (0, 24)}).ranges) == ["system", "image"]


def test_spans_may_touch():
    assert Spans({"a": (0, 4), "b": (4, 8)}).between(2, 6, frozenset("ab")) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": (0, 24), "b": (20, 30)}, r"'a' \(0, 24\) and 'b' \(20, 30\) overlap.*token 20"),
        ({"a": (4, 4)}, r"0 <= first < end.*\(4, 4\)"),
        ({"a": (-3, 4)}, r"\(-3, 4\)"),
        ({"a": (0, 2**40)}, "2147483647"),
        ({"a": (0, 4, 8)}, "range of two ints"),
        ({"a": (False, True)}, "range of two ints"),
        ({"a": (0.0, 4.0)}, "range of two ints"),
        ({"a": 4}, "range of two ints"),
        ({3: (0, 4)}, "the name of a span is a text"),
        ({"": (0, 4)}, "the name of a span is a text"),
        ([(0, 4)], "mapping of names to ranges"),
        ([], "mapping of names to ranges"),
        ("system", "mapping of names to ranges"),
    ],
)
def test_what_is_no_span_is_refused(given, message):
    with pytest.raises(InvalidValueError, match=message):
        checked_spans(given)


def test_a_name_that_is_no_span_is_refused_with_the_nearest_one():
    spans = checked_spans([{"system": (0, 4)}, {"image": (2, 4)}])
    with pytest.raises(InvalidValueError, match=r"Did you mean 'image'.*'system', 'image'"):
        checked_protect(["imag"], spans)
    with pytest.raises(InvalidValueError, match=r"a list of names.*'image'"):
        checked_protect("image", spans)
    assert checked_protect(["image", "system"], spans) == {"image", "system"}


def test_true_protects_all_spans():
    assert checked_protect(True, checked_spans([{"a": (0, 4)}, {"b": (0, 4)}])) == {"a", "b"}


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
