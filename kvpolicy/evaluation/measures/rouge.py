"""ROUGE-L: the longest common subsequence of words (Lin, 2004).

The numbers are those of Google's package `rouge-score` without stemming: words are runs of the
letters a to z and digits, in lower case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(text: str, answer: str) -> float:
    """Return the F1 score of the longest common subsequence of words.

    >>> rouge_l("the cat sat", "the cat was fat")
    0.5714285714285714
    """
    words, expected = _words(text), _words(answer)
    common = common_length(words, expected)
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def rouge_l_sum(text: str, answer: str) -> float:
    r"""Return the summary-level F1 score: a line is a sentence, as `rougeLsum` of rouge-score.

    For each sentence of the answer, the words of its longest common subsequences with all
    sentences of the text are united; a word counts at most as often as either text has it.

    >>> rouge_l_sum("w1 w2 w6\nw1 w3 w8 w5", "w1 w2 w3 w4 w5")
    0.6666666666666666
    """
    sentences, expected = (
        [words for words in map(_words, each.split("\n")) if words] for each in (text, answer)
    )
    left, wanted = (Counter(chain.from_iterable(each)) for each in (sentences, expected))
    length = left.total() + wanted.total()
    hits = 0
    for reference in expected:
        union = {place for one in sentences for place in _common_places(reference, one)}
        for place in sorted(union):
            word = reference[place]
            if left[word] > 0 and wanted[word] > 0:
                hits += 1
                left[word] -= 1
                wanted[word] -= 1
    return 2 * hits / length if hits else 0.0


def common_lengths(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """Return the lengths of the longest common subsequences of all beginnings of two texts.

    >>> common_lengths("ab", "b")
    [[0, 0], [0, 0], [0, 1]]
    """
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, word in enumerate(first, start=1):
        for column, other in enumerate(second, start=1):
            table[row][column] = (
                table[row - 1][column - 1] + 1
                if word == other
                else max(table[row - 1][column], table[row][column - 1])
            )
    return table


def _common_places(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """Return the places in `first` of a longest common subsequence, of several rouge-score's."""
    table = common_lengths(first, second)
    places, row, column = [], len(first), len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            row, column = row - 1, column - 1
            places.append(row)
        elif table[row][column - 1] > table[row - 1][column]:
            column -= 1
        else:
            row -= 1
    return places


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
