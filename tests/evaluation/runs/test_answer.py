"""Texts, choices and likelihoods, and what each of them is asked of: a context is read once."""

from __future__ import annotations

import math

import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.measures.reconstruction import record, token_errors
from kvpolicy.evaluation.runs.answer import answered
from kvpolicy.evaluation.runs.grid import Named
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.reading import Reading
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric, Sample


@pytest.fixture
def answer(model, tokenizer, text):
    def answer(metric, policy=None, question="inside", **fields):
        given = {"context": text, "question": " what colour ?", "max_new_tokens": 5} | fields
        sample = Sample(name="1", **given)
        prompt = PromptFormat(tokenizer=tokenizer, question=question).prompt(sample)
        return answered(model, tokenizer, prompt, sample, METRICS[metric], policy)

    return answer


def logits(model, tokenizer, text, choice):
    ids = tokenizer(text + " what colour ? " + choice)["input_ids"]
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    new = len(tokenizer(choice)["input_ids"])
    return [float(found[place - 1, ids[place]]) for place in range(len(ids) - new, len(ids))]


def test_the_likeliest_choice_is_taken(answer, model, tokenizer, text):
    choices = ("red", "blue w1 w2", "green w5")
    sums = [sum(logits(model, tokenizer, text, each)) for each in choices]
    best = choices[sums.index(max(sums))]
    found = answer("multiple_choice", choices=choices, answers=(best,))
    assert (found["text"], found["score"]) == (best, 1)
    wrong = next(each for each in choices if each != best)
    assert answer("multiple_choice", choices=choices, answers=(wrong,))["score"] == 0


def test_perplexity_is_that_of_the_answer(answer, model, tokenizer, text):
    found = answer("perplexity", answers=("blue w1 w2",))
    expected = -sum(logits(model, tokenizer, text, "blue w1 w2")) / 3
    assert found["score"] == pytest.approx(expected, rel=1e-5)
    assert found["weight"] == 3
    figure = METRICS["perplexity"].figure([found["score"]], [3])
    assert figure == pytest.approx(math.exp(expected), rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_text_has_the_losses_of_its_stretches_in_order(model, tokenizer, text, chunk):
    sample = Sample(name="1", context=text)
    prompt = PromptFormat(tokenizer=tokenizer).prompt(sample)
    metric = Metric(name="perplexity", asks="stream", chunk=chunk)
    found = answered(model, tokenizer, prompt, sample, metric, None)
    with torch.inference_mode():
        probabilities = model(prompt.context).logits[0, :-1].double().log_softmax(-1)
    losses = -probabilities.gather(1, prompt.context[0, 1:, None])[:, 0]
    assert found["score"] == pytest.approx(float(losses.mean()), rel=1e-5)
    expected = [float(part.mean()) for part in losses.tensor_split(min(32, len(losses)))]
    assert found["curve"] == pytest.approx(expected, rel=1e-4)


def test_a_policy_changes_the_likelihood_of_a_single_token(answer):
    losses = [
        answer("perplexity", policy, answers=("blue",))["score"]
        for policy in (None, kvpolicy.recipe("streamingllm", budget=8))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("metric", ["multiple_choice", "perplexity", "f1"])
def test_a_budget_that_holds_everything_gives_the_numbers_of_the_full_cache(answer, metric):
    fields = {"choices": ("red", "blue", "w1 w2"), "answers": ("red",), "question": "outside"}
    full, policy = (
        answer(metric, policy, **fields) for policy in (None, kvpolicy.recipe("snapkv", budget=200))
    )
    assert policy["score"] == pytest.approx(full["score"], abs=1e-5)
    assert policy.get("text") == full.get("text")


def test_agreement_ends_at_the_first_token_that_the_full_cache_would_not_write(answer):
    policy = kvpolicy.recipe("streamingllm", budget=8)
    found = answer("agreement", policy, max_new_tokens=6)
    whole = answer("agreement", max_new_tokens=6)["text"].split()
    mine = found["text"].split()
    first = next((place for place in range(6) if mine[place] != whole[place]), 6)
    assert found["score"] == first / 6 < 1
    assert found["new_tokens"] == 6
    assert found["divergence"] > 0


def test_agreement_has_the_error_of_attention_of_the_tokens_that_follow(
    answer, model, tokenizer, text
):
    found = answer("agreement", kvpolicy.recipe("streamingllm", budget=8), max_new_tokens=6)
    error = found["parts"]["error of attention"]
    sample = Sample(name="1", context=text, question=" what colour ?")
    ids = PromptFormat(tokenizer=tokenizer).prompt(sample).context
    with torch.inference_mode():
        written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    full = record(model, ids[:, :-1], written[:, ids.shape[1] - 1 :])
    expected = token_errors(model, kvpolicy.recipe("streamingllm", budget=8), full, propagate=True)
    assert error == pytest.approx(float(expected.mean()), rel=1e-4)
    whole = answer("agreement", kvpolicy.recipe("snapkv", budget=200), max_new_tokens=6)
    assert whole["parts"]["error of attention"] < 1e-5


def test_a_metric_may_give_further_figures_of_a_text(model, tokenizer, text):
    metric = Metric(
        name="own",
        judge=lambda text, sample: 0.5,
        parts=lambda text, sample: {"words": len(text.split()), "limit": sample.max_new_tokens},
    )
    sample = Sample(name="1", context=text, max_new_tokens=5)
    prompt = PromptFormat(tokenizer=tokenizer).prompt(sample)
    found = answered(model, tokenizer, prompt, sample, metric, None)
    assert (found["score"], found["parts"]) == (0.5, {"words": 5, "limit": 5})


def test_a_stop_ends_the_text(answer):
    whole = answer("f1", answers=("red",))["text"]
    stop = whole.split()[2]
    found = answer("f1", answers=("red",), stop=(stop,))["text"]
    assert found == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("metric", "fields", "sentence"),
    [
        ("multiple_choice", {"choices": ("red",), "answers": ("red",)}, "has 1 choices"),
        ("perplexity", {}, "has no answer"),
        ("perplexity", {"answers": ("",)}, "is empty"),
    ],
)
def test_what_a_sample_lacks_is_said(answer, metric, fields, sentence):
    with pytest.raises(InvalidValueError, match=sentence):
        answer(metric, **fields)


@pytest.mark.parametrize("metric", ["exact_match", "multiple_choice", "perplexity", "agreement"])
def test_questions_on_one_context_get_the_rows_of_reading_it_anew(make, shared, metric, figures):
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
