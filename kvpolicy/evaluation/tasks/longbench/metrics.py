"""LongBench's metrics, each the best over the answers; after LongBench/metrics.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

from kvpolicy.evaluation.measures.catalogue import best
from kvpolicy.evaluation.measures.text import token_f1
from kvpolicy.evaluation.tasks.longbench.chinese import chinese_rouge, chinese_token_f1
from kvpolicy.evaluation.tasks.longbench.rouge import rouge_l_of_sets
from kvpolicy.task import Judge, Metric, Sample

FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
"""Tasks of which only the first line of an answer counts."""
CLASSES = ("trec", "lsht")
"""Tasks that choose one of many classes."""


def count_score(text: str, answer: str) -> float:
    """Return the share of the numbers in the text that are the answer.

    >>> count_score("5 or 7", "7")
    0.5
    """
    numbers = re.findall(r"\d+", text)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval_score(text: str, answer: str) -> float:
    """Return the share of the numbers in the text that are the answer's paragraph.

    >>> retrieval_score("Paragraph 12", "Paragraph 12")
    1.0
    """
    found = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    return count_score(text, found[1]) if found else 0.0


def code_score(text: str, answer: str) -> float:
    r"""Return the similarity of the first line that is neither a comment nor a fence, in percent.

    It is `fuzzywuzzy.fuzz.ratio` without python-Levenshtein: difflib's ratio, rounded.

    >>> code_score("# comment\nreturn x", "return y")
    0.88
    """
    lines = text.lstrip("\n").split("\n")
    line = next((each for each in lines if not any(mark in each for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def class_score(text: str, sample: Sample) -> float:
    """Return 1 over the number of classes that the text names, if the right one is among them."""
    return max(_class_score(text, answer, sample) for answer in sample.answers)


def _class_score(text: str, answer: str, sample: Sample) -> float:
    named = [name for name in sample.extra["all_classes"] if name in text]
    for name in named:  # as LongBench does: what follows a name that is removed is passed over
        if name in answer and name != answer:
            named.remove(name)
    return 1.0 / len(named) if answer in named else 0.0


def _of_first_line(judge: Judge) -> Judge:
    return lambda text, sample: judge(text.lstrip("\n").split("\n")[0], sample)


WORDS = ("multifieldqa_zh", "dureader", "vcsum")
"""Tasks whose metric needs the words of Chinese texts."""
_SUMMARIES = ("gov_report", "qmsum", "multi_news", "samsum")
_JUDGES: Mapping[str, tuple[str, Judge]] = {
    **dict.fromkeys(_SUMMARIES, ("rouge", best(rouge_l_of_sets))),
    **dict.fromkeys(("lcc", "repobench-p"), ("code_sim", best(code_score))),
    **dict.fromkeys(WORDS[1:], ("rouge_zh", best(chinese_rouge))),
    "multifieldqa_zh": ("qa_f1_zh", best(chinese_token_f1)),
    **dict.fromkeys(CLASSES, ("classification", class_score)),
    "passage_count": ("count", best(count_score)),
    "passage_retrieval_en": ("retrieval", best(retrieval_score)),
    "passage_retrieval_zh": ("retrieval", best(retrieval_score)),
}


def metric_of(task: str) -> Metric:
    """Return the metric of a task; that of questions is F1.

    >>> metric_of("qasper").name, metric_of("trec").name
    ('qa_f1', 'classification')
    """
    name, judge = _JUDGES.get(task, ("qa_f1", best(token_f1)))
    return Metric(name=name, judge=_of_first_line(judge) if task in FIRST_LINE else judge)
