"""Metrics are found by name, or as a function in a module."""

from __future__ import annotations

import pytest

from kvpolicy.errors import ComponentFailedError, InvalidValueError
from kvpolicy.evaluation.measures.catalogue import METRICS, metric_named
from kvpolicy.task import Sample

SAMPLE = Sample(name="1", answers=("blue", "dark green"))


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("exact_match", "dark green", 1),
        ("exact_match", "dark green.", 0),
        ("contains", "It is blue.", 1),
        ("contains_all", "It is blue.", 0.5),
        ("f1", "green", 2 / 3),
        ("rouge_l", "green", 2 / 3),
        ("edit_similarity", "blue", 1),
        ("multiple_choice", "blue", 1),
    ],
)
def test_the_answer_that_agrees_best_counts(name, text, score):
    assert metric_named(name).judge(text, SAMPLE) == pytest.approx(score)


def test_each_metric_goes_by_its_name():
    assert all(metric_named(name) is metric for name, metric in METRICS.items())


def test_a_function_of_a_module_in_this_folder_is_a_metric(tmp_path, monkeypatch):
    (tmp_path / "own_metric_a.py").write_text("def length(text, sample):\n    return len(text)\n")
    monkeypatch.chdir(tmp_path)
    metric = metric_named("own_metric_a:length")
    assert (metric.name, metric.judge("four", SAMPLE)) == ("own_metric_a:length", 4)


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("exact_mach", InvalidValueError, "Did you mean 'exact_match'?"),
        ("no_such_module:length", InvalidValueError, "there is no module 'no_such_module'"),
        ("own_metric_b:nothing", InvalidValueError, "has no function 'nothing'"),
        ("own_metric_c:length", ComponentFailedError, "division by zero"),
        ("own_metric_d:length", ComponentFailedError, "No module named 'nowhere'"),
    ],
)
def test_what_is_no_metric_is_said(name, error, sentence, tmp_path, monkeypatch):
    (tmp_path / "own_metric_b.py").write_text("")
    (tmp_path / "own_metric_c.py").write_text("1 / 0")
    (tmp_path / "own_metric_d.py").write_text("import nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence):
        metric_named(name)
