"""All tasks together."""

from __future__ import annotations

from kvpolicy.evaluation.reports.overview import overview
from kvpolicy.evaluation.reports.summary import summary


def test_scores_are_averaged_and_differences_counted(rows, make_row):
    other = [make_row(row.sample, row.entrant, row.budget, row.score, task="b") for row in rows]
    found = {(each.entrant, each.budget): each for each in overview(summary([*rows, *other]))}
    restkv, snapkv = found["restkv", 64], found["snapkv", 64]
    assert restkv.mean == 0.8
    assert (snapkv.better, snapkv.worse, snapkv.compared) == (0, 2, 2)
    assert (restkv.better, restkv.worse, restkv.compared) == (0, 0, 2)


def test_who_lacks_a_task_has_no_mean(rows, make_row):
    lines = overview(summary([*rows, make_row("1", task="b")]))
    assert {each.entrant: each.mean for each in lines if each.budget in (None, 64)} == {
        "full": 1.0,
        "restkv": None,
        "snapkv": None,
    }


def test_one_task_and_perplexities_need_no_overview(rows, make_row):
    assert overview(summary(rows)) == []
    perplexity = make_row("1", task="b", score=2.0, asks="stream")
    assert overview(summary([*rows, perplexity])) == []
