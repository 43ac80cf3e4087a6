"""Agreement of texts, against cases that were worked out by hand."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.measures.text import (
    contains,
    edit_similarity,
    exact_match,
    token_f1,
)


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("amber coral drum", True),
        ("  amber\ncoral  drum ", True),
        ("amber coral", False),
        ("amber coral drum drum", False),
        ("Amber coral drum", False),
        ("", False),
    ],
)
def test_only_the_whole_answer_matches(answer, same):
    assert exact_match(answer, "amber coral drum") is same


@pytest.mark.parametrize(
    ("text", "found"),
    [("It is Seven-Up.", True), ("seven", False), ("SEVEN-UP", True), ("", False)],
)
def test_an_answer_is_found_anywhere_in_the_text(text, found):
    assert contains(text, " seven-up ") is found


@pytest.mark.parametrize(
    ("text", "answer", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower!", 1.0),
        ("it is the Eiffel Tower", "Eiffel tower", 2 / 3),  # precision 2/4, recall 2/2
        ("tower tower", "tower", 2 / 3),  # precision 1/2, recall 1/1
        ("red", "blue", 0.0),
        ("the", "blue", 0.0),
        ("", "blue", 0.0),
    ],
)
def test_f1_counts_normalised_words(text, answer, f1):
    assert token_f1(text, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "answer", "ratio"),
    [("abcd", "bcde", 0.75), ("  x = 1\n", "x = 1", 1.0), ("a", "b", 0.0), ("", "", 1.0)],
)
def test_edit_similarity_is_the_share_of_matching_characters(text, answer, ratio):
    assert edit_similarity(text, answer) == ratio
