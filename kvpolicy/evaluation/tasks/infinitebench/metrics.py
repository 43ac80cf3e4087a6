"""InfiniteBench's metrics, after its src/compute_scores.py; a sample's labels are its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvpolicy.evaluation.measures.catalogue import best
from kvpolicy.evaluation.measures.rouge import rouge_l_sum
from kvpolicy.evaluation.measures.text import bare_characters, token_f1, word_f1
from kvpolicy.task import Judge, Metric, Sample

_MARKS = ("\n", ":", '"', "'", ".", ",", "?", "!", "{", "}")


def first_number(text: str, sample: Sample) -> float:
    """Return whether the first run of digits is the label.

    >>> first_number("It is 71432.", Sample(name="1", answers=("71432",)))
    1.0
    """
    found = re.search(r"[0-9]+", text)
    return float((found[0] if found else "") == sample.answers[0])


def among_words(text: str, sample: Sample) -> float:
    """Return whether the label is one of the words, marks taken for blanks."""
    return float(sample.answers[0] in _blanked(text, _MARKS).split())


def among_upper_words(text: str, sample: Sample) -> float:
    """Return whether the first label is one of the words in capitals."""
    words = _blanked(text.strip(), _MARKS).split()
    return float(sample.answers[0] in [word.upper() for word in words])


def last_integer(text: str, sample: Sample) -> float:
    """Return whether the last word is the label, a whole number."""
    words = _blanked(text.strip(), ("\n", ".", "`", "'", '"', ":")).split()
    try:
        return float(int(words[-1]) == int(sample.answers[0]))
    except (IndexError, ValueError):
        return 0.0


def found_number(text: str, sample: Sample) -> float:
    """Return whether the first number is the label; a whole label wants a whole number."""
    found = re.search(r"\d+\.\d+|\d+", text)
    label = sample.answers[0]
    if found is None:
        return 0.0
    if "." in label:
        return float(float(found[0]) == float(label))
    # InfiniteBench stops with an error at a decimal number here.
    return float("." not in found[0] and int(found[0]) == int(label))


def correct_prefix(text: str, sample: Sample) -> float:
    """Return the share of the label's numbers with which those of the text begin."""
    numbers, labels = (_numbers(each) for each in (text, sample.answers[0]))
    pairs = enumerate(zip(numbers, labels, strict=False))
    right = next((place for place, (number, label) in pairs if number != label), None)
    return (min(len(numbers), len(labels)) if right is None else right) / len(labels)


def _numbers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"[0-9]+", text)]


def chinese_f1(text: str, answer: str) -> float:
    """Return the F1 score of characters, without blanks and punctuation."""
    return word_f1(bare_characters(text), bare_characters(answer))


def debug_choice(text: str, sample: Sample) -> float:
    """Return whether the option is named at the beginning, or behind words such as `answer is:`."""
    name, letter = sample.answers
    text = text.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = _blanked(text, ("\n", "`", "'", '"', "-", "*", "Option", "option"))
    cues = ("answer is:", "is:", "answer:", "correct option is:")
    return _behind(text, cues, (letter, name)) or 0.0


def book_choice(text: str, sample: Sample) -> float:
    """Return whether the first letter, the text behind a cue, or the first A to D is the option."""
    text = text.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in sample.answers)
    if text in sample.answers:
        return 1.0
    text = _blanked(text, ("\n", '"', "'", ".", ",", "?", "!", "{", "}"))
    cues = ("answer is:", "answer:", "answer is", "option is")
    found = _behind(text, cues, sample.answers)
    if found is not None:
        return found
    letter = next((word for word in text.split() if word in "ABCD"), "")
    return float(letter in sample.answers)


def _behind(text: str, cues: tuple[str, ...], labels: tuple[str, ...]) -> float | None:
    """Return whether a label follows the first cue that there is; None without any."""
    text = re.sub(" +", " ", text)
    for cue in cues:
        place = text.find(cue)
        if place >= 0:
            return float(text[place + len(cue) + 1 :].startswith(labels))
    return None


def _blanked(text: str, marks: tuple[str, ...]) -> str:
    for mark in marks:
        text = text.replace(mark, " ")
    return text


METRICS: Mapping[str, Judge] = {
    "passkey": first_number,
    "number_string": first_number,
    "kv_retrieval": among_words,
    "longbook_sum_eng": best(rouge_l_sum),
    "longbook_choice_eng": book_choice,
    "longbook_qa_eng": best(token_f1),
    "longbook_qa_chn": best(chinese_f1),
    "longdialogue_qa_eng": among_upper_words,
    "math_find": found_number,
    "math_calc": correct_prefix,
    "code_run": last_integer,
    "code_debug": debug_choice,
}


def metric_of(task: str) -> Metric:
    """Return the metric of a task.

    >>> metric_of("passkey").name
    'infinitebench_passkey'
    """
    return Metric(name=f"infinitebench_{task}", judge=METRICS[task])
