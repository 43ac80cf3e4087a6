"""Chinese texts are scored by the words that jieba finds, after LongBench's metrics.py."""

# ruff: noqa: RUF001 - Chinese marks are meant
from __future__ import annotations

import sys

import pytest

from kvpolicy.errors import MissingPackageError
from kvpolicy.evaluation.tasks.longbench.chinese import (
    chinese_rouge,
    chinese_token_f1,
    words_of,
)
from kvpolicy.evaluation.tasks.longbench.task import CHINESE, LongBenchTask


def test_words_are_those_of_jieba(capfd):
    assert words_of("我来到北京清华大学。Ada 3") == [
        *("我", "来到", "北京", "清华大学", "。", "Ada", " ", "3"),
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        # 我 来到 北京 清华大学 against 北京 大学: one word in common, four and two words
        ("我来到北京清华大学。", "北京大学", 0),
        ("我来到北京。", "他来到北京", 2 * 2 / (3 + 3)),
        ("ADA！", "ada", 1),
        ("。", "北京", 0),
        ("", "北京", 0),
    ],
)
def test_f1_counts_words_without_marks(text, answer, score):
    assert chinese_token_f1(text, answer) == pytest.approx(score)


def test_rouge_counts_words_and_marks():
    # 我 来到 北京 。 against 他 来到 北京 。: three of four words in common
    assert chinese_rouge("我来到北京。", "他来到北京。") == pytest.approx(0.75)
    assert chinese_rouge("", "北京") == 0


@pytest.mark.parametrize("task", CHINESE)
def test_a_missing_package_is_named_before_the_work_begins(monkeypatch, task):
    monkeypatch.setitem(sys.modules, "jieba", None)
    if task in ("lsht", "passage_retrieval_zh"):
        assert LongBenchTask(task=task, folder="data").task == task
        return
    with pytest.raises(MissingPackageError, match=rf"{task} is scored .* Install kvpolicy\[zh\]"):
        LongBenchTask(task=task, folder="data")
