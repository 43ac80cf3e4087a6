"""Spans are named ranges of positions; what is none is refused with the way out."""

import numpy as np
import pytest
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.spans import Spans, checked_protect, checked_spans


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
        ({"a": range(0, 9, 2)}, "range of two ints"),
        ({"a": torch.tensor([False, True])}, "range of two ints"),
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


@pytest.mark.parametrize("given", [(5, 7), [5, 7], range(5, 7), np.array([5, 7])])
def test_two_ints_and_a_range_of_python_are_the_same_span(given):
    assert Spans({"a": given}).ranges == {"a": (5, 7)}
