"""InfiniteBench's metrics, against cases worked out by its own code's rules."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.tasks.infinitebench.metrics import METRICS, metric_of
from kvpolicy.task import Sample

CASES = [
    ("passkey", "The key is 71432, or 5.", ("71432",), 1),
    ("passkey", "5, no, 71432", ("71432",), 0),
    ("passkey", "none", ("71432",), 0),
    ("number_string", "00112", ("00112",), 1),
    ("kv_retrieval", '"a-b": "c-d"}', ("c-d",), 1),
    ("kv_retrieval", "c-d-e", ("c-d",), 0),
    ("longdialogue_qa_eng", "It is Ada!", ("ADA", "OTTO"), 1),
    ("longdialogue_qa_eng", "It is Otto!", ("ADA", "OTTO"), 0),
    ("code_run", "The value is: -12.", ("-12",), 1),
    ("code_run", "12 or so", ("12",), 0),
    ("code_run", "", ("12",), 0),
    ("math_find", "It is 17.", ("17",), 1),
    ("math_find", "1.5, then 17", ("17",), 0),
    ("math_find", "1.5", ("1.5",), 1),
    ("math_find", "2", ("2.0",), 1),
    ("math_calc", "[1, 2, 4]", ("1, 2, 3, 4",), 0.5),
    ("math_calc", "1, 2", ("1, 2, 3, 4",), 0.5),
    ("math_calc", "1 2 3 4 5", ("1, 2, 3, 4",), 1),
    ("math_calc", "", ("1, 2",), 0),
    ("code_debug", "C. because", ("f_c", "C"), 1),
    ("code_debug", "The answer is: f_c", ("f_c", "C"), 1),
    ("code_debug", "The answer is: B", ("f_c", "C"), 0),
    ("code_debug", "C", ("f_c", "C"), 0),
    ("longbook_choice_eng", "B) Ada", ("Ada", "B"), 1),
    ("longbook_choice_eng", "Otto", ("Otto", "B"), 1),
    ("longbook_choice_eng", "Ada", ("Ada", "B"), 0),  # its first letter is taken for an option
    ("longbook_choice_eng", "the answer is: B", ("Ada", "B"), 1),
    ("longbook_choice_eng", "the answer is: C", ("Ada", "B"), 0),
    ("longbook_choice_eng", "it must be B or C", ("Ada", "B"), 1),
    ("longbook_choice_eng", "", ("Ada", "B"), 0),
    ("longbook_choice_eng", "no idea", ("Ada", "B"), 0),
    ("longbook_qa_eng", "the Tower", ("bridge", "tower"), 1),
    ("longbook_qa_chn", "白色 的马。", ("白马",), 2 * 2 / (4 + 2)),
    ("longbook_sum_eng", "the cat sat\nit was red", ("the cat was fat\nred it is",), 8 / 13),
]


@pytest.mark.parametrize(("task", "text", "answers", "score"), CASES)
def test_answers_are_scored_by_the_rule_of_their_task(task, text, answers, score):
    sample = Sample(name="1", answers=answers)
    assert metric_of(task).judge(text, sample) == pytest.approx(score)


def test_every_metric_has_a_case():
    assert {task for task, *_ in CASES} == set(METRICS)
