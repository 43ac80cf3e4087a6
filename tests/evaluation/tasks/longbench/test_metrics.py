"""LongBench's metrics, against what its own code and packages give."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.tasks.longbench.metrics import (
    class_score,
    code_score,
    count_score,
    metric_of,
    retrieval_score,
)
from kvpolicy.evaluation.tasks.longbench.rouge import rouge_l_of_sets
from kvpolicy.evaluation.tasks.longbench.task import CHINESE
from kvpolicy.task import Sample

# What rouge 1.0.1 gives for get_scores([text], [answer], avg=True)["rouge-l"]["f"].
ROUGE = [
    ("the cat sat. it was red", "the cat was fat. red it is", 0.6153846104142012),
    ("one two two three", "two one three. four", 0.5714285665306124),
    ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 0.6153846106508877),
    ("A report. On costs.  Of ships", "a report on costs of Ships.", 0.3333333283333334),
    ("no words shared", "at all here", 0.0),
    ("same text. Same", "same text. Same", 0.999999995),
]


@pytest.mark.parametrize(("text", "answer", "f"), ROUGE)
def test_rouge_is_that_of_the_package(text, answer, f):
    assert rouge_l_of_sets(text, answer) == pytest.approx(f, abs=1e-12)


@pytest.mark.parametrize("text", ["", "..."])
def test_a_text_without_a_sentence_scores_nothing(text):
    assert rouge_l_of_sets(text, "the cat") == 0


def test_a_long_text_is_no_fault():
    words = " ".join(f"w{number}" for number in range(1500))
    assert rouge_l_of_sets(words, "w3 w1400 other") == pytest.approx(2 * 2 / 1503, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [("There are 7.", "7", 1), ("7, no, 8", "7", 0.5), ("none", "7", 0), ("17", "7", 0)],
)
def test_counts_are_shares_of_the_numbers(text, answer, score):
    assert count_score(text, answer) == score


def test_a_paragraph_is_found_by_its_number():
    assert retrieval_score("Paragraph 3 or 4", "Paragraph 4") == 0.5
    assert metric_of("passage_retrieval_zh").judge("段落12", Sample(name="1", answers=("段落12",)))


def test_every_chinese_task_has_its_metric():
    names = [metric_of(task).name for task in CHINESE]
    assert names == ["qa_f1_zh", "rouge_zh", "rouge_zh", "classification", "retrieval"]


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("\n# no\n```\n// no\n    return x\nmore", "    return x", 1),
        ("return x", "return y", 0.88),
        ("# only a comment", "return y", 0),
        ("", "", 1),
    ],
)
def test_code_is_compared_by_its_first_line(text, answer, score):
    assert code_score(text, answer) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("Human being", "Human being", 1),  # "Human" is a part of the answer, and does not count
        ("Food or Human", "Human", 0.5),
        ("Food", "Human", 0),
        ("Human being", "Human", 0.5),
    ],
)
def test_classes_that_are_named_share_the_score(text, answer, score):
    classes = ["Food", "Human", "Human being"]
    sample = Sample(name="1", answers=(answer,), extra={"all_classes": classes})
    assert class_score(text, sample) == score


def test_the_first_line_alone_counts_where_examples_are_shown():
    sample = Sample(name="1", answers=("Otto",))
    assert metric_of("triviaqa").judge("\n\nOtto\nand more", sample) == 1
    assert metric_of("hotpotqa").judge("\n\nOtto\nand more", sample) == 0.5
