"""ROUGE-L: the longest common subsequence of words (Lin, 2004).

The numbers are those of Google's package `rouge-score` without stemming: words are runs of the
letters a to z and digits, in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(text: str, answer: str) -> float:
    """Return the F1 score of the longest common subsequence of words.

    >>> rouge_l("the cat sat", "the cat was fat")
    0.5714285714285714
    """
    words, expected = _words(text), _words(answer)
    common = common_length(words, expected)
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    >>> common_length("abcbdab", "bdcaba")
    4
    """
    row = [0] * (len(second) + 1)
    for word in first:
        above_left = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = above_left + 1 if word == other else max(above, row[column - 1])
            above_left = above
    return row[-1]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
