"""A grid runs everyone on everything, once, and goes on where it stopped."""

from __future__ import annotations

import attrs
import pytest

from kvpolicy.errors import ResultsError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.runs.grid import Named
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric, Sample
from kvpolicy.testing import tiny_model


def test_there_is_a_row_for_each_entrant_and_sample(make):
    grid = make()
    rows = grid.run(Results())
    assert len(rows) == len(grid) == 20
    assert {row.entrant for row in rows} == {"full", "restkv", "streamingllm"}
    assert [row.score for row in rows if row.entrant == "full"] == [1, 1, 1, 1]
    assert len({row.key for row in rows}) == 20


def test_a_row_says_what_was_held_and_where_it_comes_from(make):
    full, evicted = make(["restkv"], [40]).run(Results())[:2]
    assert (full.tokens, full.positions, evicted.positions) == (96, 96, 40)
    assert evicted.nbytes < full.nbytes
    assert evicted.footprint < evicted.full_footprint == full.footprint
    assert full.first_seconds > 0 < full.token_seconds
    assert full.policy is None
    assert evicted.policy["budget"] == 40
    assert full.prompt == evicted.prompt
    assert evicted.run["model"]["class"] == "LlamaForCausalLM"
    assert evicted.run["machine"]["packages"]["kvpolicy"]


def test_a_share_of_the_prompt_is_kept(make):
    rows = make(["snapkv"], [0.5]).run(Results())
    assert [row.positions for row in rows if row.budget == 0.5] == [48] * 4


def test_outside_the_question_is_asked_of_an_evicted_context(make):
    rows = make(["snapkv"], [40], question="outside").run(Results())
    # The 40 that the context left, and the 3 tokens of the question.
    assert {row.positions for row in rows if row.budget == 40} == {40 + 3}
    assert all(row.score == 1 for row in rows if row.entrant == "full")
    assert {row.question for row in rows} == {"outside"}


def test_a_run_stopped_amid_the_questions_on_a_context_repeats_none(
    make, shared, tmp_path, figures
):
    class Stopped(BaseException):
        pass

    def stop(row, ran):
        heard.append(row.key)
        if len(heard) == 5:
            raise Stopped

    def grid():
        task = Named(name="shared", samples=shared, metric=METRICS["exact_match"])
        return make(["restkv"], [40], tasks=[task], question="outside")

    heard = []
    with pytest.raises(Stopped):
        grid().run(Results(tmp_path / "rows.jsonl"), stop)
    ran = []
    rows = grid().run(
        Results(tmp_path / "rows.jsonl"), lambda row, new: ran.append(row.key) if new else None
    )
    assert len(ran) == 12 - 5
    assert not set(ran) & set(heard)
    assert figures(rows) == figures(grid().run(Results()))


def test_a_second_run_repeats_nothing(make, tmp_path):
    first, heard = make().run(Results(tmp_path / "rows.jsonl")), []
    written = (tmp_path / "rows.jsonl").read_bytes()
    again = make().run(Results(tmp_path / "rows.jsonl"), lambda row, ran: heard.append(ran))
    assert again == first
    assert heard == [False] * 20
    assert (tmp_path / "rows.jsonl").read_bytes() == written


def test_a_run_that_was_stopped_goes_on_with_the_run_it_was_at(make, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(row, ran):
        heard.append(row.key)
        if len(heard) == 7:
            raise Stopped

    heard = []
    with pytest.raises(Stopped):
        make().run(Results(tmp_path / "rows.jsonl"), stop)
    ran = []
    rows = make().run(
        Results(tmp_path / "rows.jsonl"), lambda row, new: ran.append(row.key) if new else None
    )
    assert len(ran) == 13
    assert not set(ran) & set(heard)
    whole = make().run(Results())
    assert [(row.key, row.text) for row in rows] == [(row.key, row.text) for row in whole]


def test_more_entrants_and_samples_may_be_added_later(make, tmp_path):
    make(["restkv"], [40]).run(Results(tmp_path / "rows.jsonl"))
    ran = []
    make(["restkv", "streamingllm"], [40]).run(
        Results(tmp_path / "rows.jsonl"), lambda row, new: ran.append(row.entrant) if new else None
    )
    assert ran == ["streamingllm"] * 4


def test_a_refused_budget_and_a_failing_sample_are_rows_with_an_error(make, samples):
    bad = [Sample(name="bad", context="", answers=("x",)), samples[0]]
    task = Named(name="needles", samples=bad, metric=METRICS["exact_match"])
    rows = make(["restkv"], [8, 40], tasks=[task]).run(Results())
    errors = {(row.sample, row.entrant, row.budget): row.error for row in rows}
    assert errors["bad", "full", None] == (
        "InvalidValueError: sample 'bad' is empty. Give it a text to read."
    )
    assert "budget 8 is smaller" in errors["0", "restkv", 8]
    assert errors["0", "full", None] is errors["0", "restkv", 40] is None
    assert all(row.failed == (row.error is not None) for row in rows)


def test_a_prompt_longer_than_the_model_is_an_error_that_says_what_to_do(make, samples):
    long = attrs.evolve(samples[0], context="ada " * 5000)
    task = Named(name="long", samples=[long], metric=METRICS["exact_match"])
    [row] = make([], [], tasks=[task]).run(Results())
    assert "has 5,004 tokens, but the model reads at most" in row.error
    assert "--max-prompt-tokens" in row.error


def test_a_failed_run_is_tried_again_only_if_asked(make, samples, tmp_path):
    failing = [True]

    def judge(text, sample):
        if failing:
            raise RuntimeError("out of luck")
        return 1.0

    task = Named(name="own", samples=samples[:1], metric=Metric(name="own", judge=judge))
    run = lambda **options: make([], [], tasks=[task], **options).run(  # noqa: E731
        Results(tmp_path / "rows.jsonl")
    )
    assert run()[0].error == "RuntimeError: out of luck"
    failing.clear()
    assert run()[0].failed
    assert run(retry=True)[0].score == 1
    assert run()[0].score == 1


def test_other_code_does_not_go_on_in_the_same_file(make, tmp_path, monkeypatch):
    make(["restkv"], [40]).run(Results(tmp_path / "rows.jsonl"))
    monkeypatch.setattr("kvpolicy.evaluation.runs.entrant.code_of", lambda policy: "newer")
    with pytest.raises(ResultsError, match=r"made with another code .* Write to another file"):
        make(["restkv"], [40]).run(Results(tmp_path / "rows.jsonl"))


def test_another_model_does_not_go_on_in_the_same_file(make, needle_pair, tmp_path):
    make(["restkv"], [40]).run(Results(tmp_path / "rows.jsonl"))
    other = tiny_model("qwen3", vocab_size=len(needle_pair[1]))
    with pytest.raises(ResultsError, match="made with another model"):
        make(["restkv"], [40], model=other).run(Results(tmp_path / "rows.jsonl"))
