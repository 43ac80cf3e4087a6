"""How well a text agrees with an answer, as a figure from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

_ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
"""For `str.translate`: takes ASCII punctuation out."""
_CHINESE = str.maketrans(
    "",
    "",
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞"  # noqa: RUF001
    "〟〰〾〿–—‘’‛“”„‟…‧﹏.",  # noqa: RUF001
)


def exact_match(text: str, answer: str) -> bool:
    """Whether the whole text is the answer; only the white space may differ.

    >>> exact_match(" amber coral  drum", "amber coral drum")
    True
    >>> exact_match("amber coral drum .", "amber coral drum")
    False
    """
    return text.split() == answer.split()


def contains(text: str, answer: str) -> bool:
    """Whether the answer occurs in the text, whatever the case of its letters.

    >>> contains("It is Amber.", "amber"), contains("It is red.", "amber")
    (True, False)
    """
    return answer.strip().lower() in text.lower()


def normalised(text: str) -> list[str]:
    """Return the words in lower case, without punctuation and articles, as SQuAD's metric does.

    >>> normalised("The cat's  hat, a Hat.")
    ['cats', 'hat', 'hat']
    """
    return _ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def bare_characters(text: str) -> str:
    """Return a text in lower case, without blanks and English and Chinese punctuation.

    >>> bare_characters("北京, A.")
    '北京a'
    """
    return "".join(text.lower().translate(NO_PUNCTUATION).translate(_CHINESE).split())


def word_f1(words: Sequence[str], expected: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words, each counted as often as it is.

    >>> word_f1(["a", "b", "b"], ["b", "c"])
    0.4
    """
    common = (Counter(words) & Counter(expected)).total()
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def token_f1(text: str, answer: str) -> float:
    """Return the F1 score of the normalised words, as SQuAD and LongBench define it.

    >>> token_f1("The tall tower", "a tower")
    0.6666666666666666
    """
    return word_f1(normalised(text), normalised(answer))


def edit_similarity(text: str, answer: str) -> float:
    """Return 2 M / T: M matching characters of `difflib`, T characters of both; two blanks are 1.

    Blanks around the texts do not count.

    >>> edit_similarity("return x", "return y")
    0.875
    """
    return SequenceMatcher(None, text.strip(), answer.strip()).ratio()
