"""ROUGE-L as LongBench has it: that of the package `rouge` 1.0.1, summary level, on sets of words.

Sentences end at full stops, words at blanks; a word counts once however often it occurs. For each
sentence of the reference, the words of its longest common subsequences with all sentences of the
text are united. Where the package runs out of recursion, LongBench scores 0; this code does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvpolicy.evaluation.measures.rouge import common_lengths


def rouge_l_of_sets(text: str, answer: str) -> float:
    """Return 2 p r / (p + r + 1e-8); 0 if either has no sentence.

    >>> round(rouge_l_of_sets("the cat sat", "the cat was fat"), 6)
    0.571429
    """
    sentences, expected = _sentences(text), _sentences(answer)
    if not sentences or not expected:
        return 0.0
    found = {
        word for reference in expected for one in sentences for word in _common(reference, one)
    }
    precision = len(found) / len({word for sentence in sentences for word in sentence})
    recall = len(found) / len({word for sentence in expected for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the words of a longest common subsequence, of several that of the package."""
    table = common_lengths(first, second)
    found, row, column = [], len(first), len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            found.append(first[row - 1])
            row, column = row - 1, column - 1
        elif table[row - 1][column] > table[row][column - 1]:
            row -= 1
        else:
            column -= 1
    return found
