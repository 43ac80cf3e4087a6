"""LongBench's metrics for Chinese texts, whose words the package jieba finds."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

from kvpolicy.errors import MissingPackageError
from kvpolicy.evaluation.measures.text import bare_characters, word_f1
from kvpolicy.evaluation.tasks.longbench.rouge import rouge_l_of_sets


def check_words(task: str) -> None:
    """Raise MissingPackageError if jieba is not installed."""
    if find_spec("jieba") is None:
        raise MissingPackageError(
            f"{task} is scored by Chinese words, which the package jieba finds. It is not "
            "installed. Install kvpolicy[zh]."
        )


def words_of(text: str) -> list[str]:
    """Return the words of a text, with those of other languages and the marks in between.

    >>> words_of("我来到北京")
    ['我', '来到', '北京']
    """
    return [str(word) for word in _segmenter().cut(text, cut_all=False)]


def chinese_token_f1(text: str, answer: str) -> float:
    """Return the F1 score of the words in lower case, without punctuation and blanks.

    >>> chinese_token_f1("北京。", "来到北京")
    0.6666666666666666
    """
    words = [[bare_characters(word) for word in words_of(each)] for each in (text, answer)]
    return word_f1(*([word for word in each if word] for each in words))


def chinese_rouge(text: str, answer: str) -> float:
    """Return LongBench's ROUGE-L of the words; marks count as words."""
    return rouge_l_of_sets(" ".join(words_of(text)), " ".join(words_of(answer)))


@cache
def _segmenter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what is deprecated
        import jieba
    jieba.setLogLevel(logging.WARNING)  # it tells how it reads its dictionary
    return jieba.Tokenizer()
