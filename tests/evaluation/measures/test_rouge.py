"""ROUGE-L gives the values that the package rouge-score publishes."""

from __future__ import annotations

from random import Random

import pytest

from kvpolicy.evaluation.measures.rouge import rouge_l, rouge_l_sum


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


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        # What rouge-score 0.1.2 gives for rougeLsum, without stemming.
        ("the cat sat\nit was red", "the cat was fat\nred it is", 0.6153846153846153),
        ("one two two three", "two one three\nfour", 0.5),
        ("a b\nb a", "b a b", 0.8571428571428571),
        ("", "one", 0.0),
        ("one", "\n", 0.0),
    ],
)
def test_lines_are_sentences_in_the_summary_level_score(text, answer, expected):
    assert rouge_l_sum(text, answer) == pytest.approx(expected)


def test_the_values_are_those_of_rouge_score():
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    scorer = scorers.RougeScorer(["rougeL", "rougeLsum"], use_stemmer=False)
    rng = Random(0)
    for _ in range(200):
        text, answer = (" ".join(rng.choices(["a", "B.", "c", "d", "\n"], k=12)) for _ in range(2))
        theirs = scorer.score(answer, text)
        assert rouge_l(text, answer) == pytest.approx(theirs["rougeL"].fmeasure)
        assert rouge_l_sum(text, answer) == pytest.approx(theirs["rougeLsum"].fmeasure)
