"""A grid runs everyone on everything, once, and goes on where it stopped."""

from __future__ import annotations

from random import Random

import attrs
import pytest

from kvpolicy.errors import ResultsError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.needle.prompts import write_document
from kvpolicy.evaluation.runs import identity
from kvpolicy.evaluation.runs.engine import InProcess
from kvpolicy.evaluation.runs.entrant import Entrant, entrants
from kvpolicy.evaluation.runs.grid import Grid, Named
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.reading import Reading
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric, Sample
from kvpolicy.testing import tiny_model


@pytest.fixture(scope="session")
def samples():
    prompts = needle.generate_prompts(tokens=96, facts=6, count=4, seed=1)
    return [
        Sample(
            name=str(number),
            context=prompt.text.rpartition(" question ")[0],
            question=" question " + prompt.text.rpartition(" question ")[2],
            answers=(prompt.answer,),
        )
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture
def make(needle_pair, samples):
    model, tokenizer = needle_pair

    def make(recipes=("restkv", "streamingllm"), budgets=(40, 0.5), **options):
        question = options.pop("question", "inside")
        references = {"oracle": options.pop("oracle", False)}
        task = Named(name="needles", samples=samples, metric=METRICS["exact_match"])
        given = {"tasks": [task], "max_new_tokens": 4} | options
        return Grid(
            engine=InProcess(model=given.pop("model", model), tokenizer=tokenizer),
            format=PromptFormat(tokenizer=tokenizer, question=question),
            entrants=entrants(recipes, budgets, **references),
            **given,
        )

    return make


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


@pytest.fixture(scope="session")
def shared():
    """Three questions on each of two contexts."""
    rng = Random(4)
    documents = {text: write_document(rng, tokens=93, facts=6) for text in "ab"}
    return [
        Sample(
            name=text + fact.name,
            context=" ".join(document.words),
            question=f" question password {fact.name}",
            answers=(" ".join(fact.code),),
            choices=(" ".join(fact.code), "amber lemon oak"),
        )
        for text, document in documents.items()
        for fact in document.facts[:3]
    ]


def figures(rows):
    """Return what two runs have in common: all but times."""
    return [
        attrs.evolve(row, first_seconds=None, token_seconds=None)
        for row in sorted(rows, key=lambda row: row.key)
    ]


@pytest.mark.parametrize("metric", ["exact_match", "multiple_choice", "perplexity", "agreement"])
def test_questions_on_one_context_get_the_rows_of_reading_it_anew(make, shared, metric):
    def grid(samples):
        task = Named(name="shared", samples=samples, metric=METRICS[metric])
        return make(["h2o"], [40], tasks=[task], question="outside")

    asked = shared[:4]  # three questions on one context, and one on the other
    together = grid(asked).run(Results())
    apart = [row for sample in asked for row in grid([sample]).run(Results())]
    assert [row.error for row in together] == [None] * 8
    assert [(row.sample, row.entrant) for row in together] == [
        (row.sample, row.entrant) for row in apart
    ]
    assert figures(together) == figures(apart)
    contexts = [row.context for row in together[::2]]
    assert None not in contexts
    assert [contexts.count(each) for each in contexts] == [3, 3, 3, 1]
    if metric == "exact_match":
        assert all(row.first_seconds > 0 < row.token_seconds for row in together)


@pytest.mark.parametrize(
    ("metric", "question", "reads"),
    [("exact_match", "outside", 2), ("exact_match", "inside", 6), ("agreement", "outside", 4)],
)
def test_a_context_is_read_once_for_each_entrant(
    make, shared, metric, question, reads, monkeypatch
):
    contexts = []
    read = Reading.read

    def heard(reading, ids):
        contexts.extend([ids.shape[1]] if ids.shape[1] > 1 else [])
        return read(reading, ids)

    monkeypatch.setattr(Reading, "read", heard)
    task = Named(name="shared", samples=shared, metric=METRICS[metric])
    make(["restkv"], [40], tasks=[task], question=question).run(Results())
    # Agreement reads it with the full cache too.
    assert len(contexts) == 2 * reads


def test_one_question_that_fails_leaves_the_others_on_its_context(make, shared):
    def judge(text, sample):
        if sample.name == shared[1].name:
            raise RuntimeError("out of luck")
        return 1.0

    task = Named(name="own", samples=shared[:3], metric=Metric(name="own", judge=judge))
    rows = make([], [], tasks=[task], question="outside").run(Results())
    assert [row.error for row in rows] == [None, "RuntimeError: out of luck", None]


def test_a_run_stopped_amid_the_questions_on_a_context_repeats_none(make, shared, tmp_path):
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


@pytest.mark.parametrize("metric", ["exact_match", "perplexity"])
@pytest.mark.parametrize("question", ["inside", "outside"])
def test_an_oracle_keeps_what_the_answer_needs(make, shared, metric, question):
    task = Named(name="shared", samples=shared[:3], metric=METRICS[metric])
    grid = make(["random"], [24], tasks=[task], question=question, oracle=True)
    rows = grid.run(Results())
    scores = {}
    for row in rows:
        assert row.error is None
        scores.setdefault(row.entrant, []).append(row.score)
    by_title = {name: sum(each) / 3 for name, each in scores.items()}
    assert list(by_title) == ["full", "random", "oracle"]
    if metric == "exact_match":
        assert by_title == {"full": 1, "oracle": 1, "random": 0}
    else:
        assert by_title["oracle"] < by_title["random"] / 2
    held = {row.positions for row in rows if row.entrant == "oracle"}
    asked_outside = 3 if question == "outside" else metric == "perplexity"
    assert held == {24 + asked_outside}
    policy = next(row.policy for row in rows if row.entrant == "oracle")
    assert policy == {"scorer": {"name": "oracle"}, "recent": 0, "budget": 24}


def test_an_oracle_is_refused_where_a_text_is_evicted_all_the_time(make, samples, tmp_path):
    metric = Metric(name="perplexity", asks="stream")
    task = Named(name="text", samples=[Sample(name="1", context="ada amber oak")], metric=metric)
    grid = make([], [], tasks=[task])
    with_oracle = attrs.evolve(grid, entrants=[*grid.entrants, Entrant(name="oracle", budget=2)])
    full, refused = with_oracle.run(Results(tmp_path / "rows.jsonl"))
    assert full.error is None
    assert refused.error.startswith("InvalidValueError: there is no oracle for metric 'perplexity'")


def test_code_is_told_apart_by_the_plugins_that_a_policy_has():
    _, snapkv, streaming = entrants(["snapkv", "streamingllm"], [64])
    codes = [identity.code_of(each.policy) for each in (snapkv, streaming)]
    assert codes[0] != codes[1]
    assert codes[0] == identity.code_of(snapkv.policy)
