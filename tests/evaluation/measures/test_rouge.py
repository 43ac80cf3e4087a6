"""ROUGE-L gives the values that the package rouge-score publishes."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.measures.rouge import rouge_l


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        # The example of rouge-score's page: precision 0.625, recall 0.5556.
        (
            "The quick brown dog jumps on the log.",
            "The quick brown fox jumps over the lazy dog",
            0.5882352941176471,
        ),
        ("testing", "testing one two", 0.5),
        ("testing one two", "testing", 0.5),
        ("two one testing", "testing one two", 1 / 3),
        ("", "testing one two", 0.0),
        ("!?", "testing", 0.0),
    ],
)
def test_the_published_values(text, answer, expected):
    assert rouge_l(text, answer) == pytest.approx(expected)


def test_words_are_lower_case_letters_and_digits():
    assert rouge_l("It's 9 o'CLOCK", "it s 9-o clock") == 1
