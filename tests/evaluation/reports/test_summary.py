"""Rows add up to figures with intervals, and to differences on the same samples."""

from __future__ import annotations

import json
import math

import attrs
import pytest

from kvpolicy.errors import InvalidValueError, ResultsError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.measures.interval import wilson_interval
from kvpolicy.evaluation.reports.summary import summary
from kvpolicy.task import Sample


def cells(rows, **options):
    return {cell.title: cell for cell in summary(rows, **options)}


def test_each_entrant_has_a_figure_and_an_interval(rows):
    found = cells(rows)
    assert list(found) == ["full", "restkv at 64", "snapkv at 64", "restkv at 25 %"]
    assert [cell.estimate.value for cell in found.values()] == [1, 0.8, 0.5, 0.5]
    assert found["snapkv at 64"].estimate.interval == wilson_interval(5, 10)
    assert found["restkv at 25 %"].estimate.interval == (0.5, 0.5)
    assert (found["full"].positions, found["full"].nbytes, found["full"].footprint) == (
        100,
        4096,
        0.5,
    )


def test_further_figures_of_a_metric_are_means_over_the_samples_that_have_them(rows):
    first, second, third, *_ = rows
    found = summary(
        [
            attrs.evolve(first, parts={"no_comma": 1.0, "title": 0.0}),
            attrs.evolve(second, parts={"no_comma": 0.0}),
            attrs.evolve(third, score=None, error="no"),
        ]
    )
    assert found[0].parts == {"no_comma": 0.5, "title": 0.0}
    assert json.loads(json.dumps(found[0].to_dict()))["parts"] == {"no_comma": 0.5, "title": 0.0}


def test_questions_on_one_text_widen_the_interval(make_row):
    rows = [
        make_row(f"{text}-{question}", score=float(text < 5), context=str(text))
        for text in range(10)
        for question in range(20)
    ]
    [found] = summary(rows)
    low, high = found.estimate.interval
    assert found.estimate.value == 0.5
    narrow = wilson_interval(100, 200)
    assert high - low > 3 * (narrow.high - narrow.low)


def test_questions_that_are_all_on_one_text_are_drawn_one_by_one(make_row):
    rows = [make_row(str(place), score=float(place < 8), context="same") for place in range(10)]
    [found] = summary(rows)
    assert found.estimate == (0.8, wilson_interval(8, 10))


def answered(make_row, said, right, *, metric, **fields):
    """Return rows of yes-or-no questions behind the same examples."""
    rows = []
    for place, (mine, theirs) in enumerate(zip(said, right, strict=True)):
        sample = Sample(name=str(place), choices=("no", "yes"), answers=(("no", "yes")[theirs],))
        text = ("no", "yes")[mine]
        parts = METRICS[metric].parts(text, sample)
        rows.append(
            make_row(
                sample.name, score=parts["accuracy"], metric=metric, parts=parts, asks="choice",
                context="examples", text=text, answers=sample.answers, **fields,
            )
        )  # fmt: skip
    return rows


def test_the_figure_of_a_set_is_none_of_its_samples(make_row):
    right = [1] * 6 + [0] * 6
    rows = answered(make_row, right, right, metric="matthews_correlation")
    said = [1] * 5 + [0] * 5 + [1] * 2
    rows += answered(
        make_row, said, right, metric="matthews_correlation", entrant="snapkv", budget=8
    )
    full, snapkv = summary(rows)
    assert full.estimate == (1, (1, 1))
    assert snapkv.estimate.value == pytest.approx((5 * 4 - 2 * 1) / (7 * 6 * 6 * 5) ** 0.5)
    low, high = snapkv.estimate.interval
    assert low < snapkv.estimate.value < high <= 1
    assert snapkv.difference.value == pytest.approx(snapkv.estimate.value - 1)
    assert snapkv.difference.interval == pytest.approx((low - 1, high - 1))
    assert snapkv.parts["accuracy"] == pytest.approx(9 / 12)
    assert snapkv.larger_is_better


def test_f1_of_a_set_goes_with_its_accuracy(make_row):
    [cell] = summary(answered(make_row, [1, 1, 1, 0], [1, 0, 0, 0], metric="f1_of_set"))
    assert cell.estimate.value == pytest.approx(0.5)
    assert cell.parts["accuracy"] == 0.5


def test_a_row_without_the_parts_of_its_metric_is_named(make_row):
    with pytest.raises(ResultsError, match="sample '7', has no part 'true positive', of which f1"):
        summary([make_row("7", metric="f1_of_set")])


def test_the_difference_is_that_to_the_full_cache(rows):
    found = cells(rows)
    assert found["full"].difference is None
    value, (low, high) = found["restkv at 64"].difference
    assert value == pytest.approx(-0.2)
    assert low < -0.2 < high <= 0


def test_another_baseline_is_met_at_the_same_budget(rows):
    found = cells(rows, baseline="snapkv")
    assert found["restkv at 64"].difference.value == pytest.approx(0.3)
    assert found["snapkv at 64"].difference is None
    assert found["restkv at 25 %"].difference is None
    assert found["full"].difference is None


def test_samples_without_a_score_are_counted_and_left_out(rows, make_row):
    failed = make_row("10", "restkv", 64, None, error="RuntimeError: no memory")
    found = cells([*rows, failed, make_row("10")])["restkv at 64"]
    assert (found.samples, found.errors, found.error) == (10, 1, "RuntimeError: no memory")
    assert found.difference.value == pytest.approx(-0.2)


def test_one_who_always_failed_has_no_figure(make_row):
    found = cells([make_row("1"), make_row("1", "snapkv", 8, None, error="refused")])
    assert found["snapkv at 8"].estimate is found["snapkv at 8"].difference is None


def test_a_perplexity_is_weighed_by_tokens(make_row):
    rows = [
        make_row("1", score=1.0, weight=3, asks="likelihood"),
        make_row("2", score=3.0, weight=1, asks="likelihood"),
    ]
    found = cells(rows)["full"]
    assert found.estimate.value == pytest.approx(math.exp(1.5))
    assert not found.larger_is_better


def test_tasks_are_kept_apart(rows, make_row):
    found = summary([*rows, make_row("1", score=0.25, task="other")])
    assert [cell.estimate.value for cell in found if cell.task == "other"] == [0.25]


def test_a_cell_is_plain_data(rows):
    data = json.loads(json.dumps([cell.to_dict() for cell in summary(rows)]))
    assert data[1]["difference"]["value"] == pytest.approx(-0.2)
    assert len(data[1]["estimate"]["interval"]) == 2


def test_an_unknown_baseline_is_refused_with_the_choices(rows):
    with pytest.raises(InvalidValueError, match=r"Did you mean 'snapkv'.* full, restkv, snapkv"):
        summary(rows, baseline="snapvk")


def test_no_rows_are_no_cells():
    assert summary([]) == []
