"""lm_eval's tasks, answered from an evicted cache, and exactly as by HFLM where nothing is."""

from __future__ import annotations

import json
import math

import pytest
import torch

import kvpolicy
from kvpolicy.errors import KvpolicyError, UnsupportedModelError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.continuations import logits_of_continuations

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install kvpolicy[eval]")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from kvpolicy.evaluation.harness import PolicyLM

RECALL = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{[answer, 'amber amber amber', 'amber']}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text[:150]}}",
    "metric_list": [{"metric": "word_perplexity"}],
}
TASKS = {"recall": RECALL, "choose": CHOOSE, "rolling": ROLLING}


@pytest.fixture(scope="module")
def pair():
    return needle.load()


@pytest.fixture(scope="module")
def prompts():
    return needle.generate_prompts(tokens=56, facts=4, count=2, seed=1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, prompts):
    """Write three tasks as YAML over one local file of JSON lines."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    rows = [json.dumps({"text": each.text, "answer": each.answer}) for each in prompts]
    data.write_text("\n".join(rows))
    for name, task in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(
            json.dumps({"task": name, "test_split": "test", **where, **task})
        )
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def answers(tasks):
    """Return what a model answers to each request of the three tasks, and the figures."""

    def answers(model):
        found = simple_evaluate(
            model, tasks=list(TASKS), task_manager=tasks, log_samples=True, bootstrap_iters=0
        )
        samples = {
            name: [each["resps"] for each in sorted(rows, key=lambda row: row["doc_id"])]
            for name, rows in found["samples"].items()
        }
        return samples, found["results"]

    return answers


@pytest.fixture(scope="module")
def make(pair):
    model, tokenizer = pair
    return lambda made=PolicyLM, **options: made(model, tokenizer=tokenizer, **options)


@pytest.fixture(scope="module")
def plain(make, answers):
    return answers(make(HFLM))


@pytest.mark.parametrize(
    "options",
    [{}, {"recipe": "restkv", "budget": 4096}, {"recipe": "snapkv", "budget": "100%"}],
    ids=["no recipe", "a large budget", "all of the prompt"],
)
def test_a_cache_that_holds_all_answers_exactly_as_hflm(make, answers, plain, options):
    assert answers(make(**options)) == plain


def test_a_small_budget_changes_every_kind_of_answer(make, answers, plain):
    samples, figures = answers(make(recipe="random", budget=16))
    for name in TASKS:
        assert samples[name] != plain[0][name]
    assert figures["recall"]["exact_match,none"] < 1
    assert plain[1]["recall"]["exact_match,none"] == 1


def test_lm_eval_knows_the_model_by_name(answers, tasks):
    found = simple_evaluate(
        "kvpolicy",
        model_args=f"pretrained={needle.MODEL},recipe=snapkv,budget=50%",
        device="cpu",
        tasks=["recall"],
        limit=1,
        task_manager=tasks,
        bootstrap_iters=0,
    )
    policy = kvpolicy.recipe("snapkv", budget=0.5)
    assert found["config"]["kvpolicy"] == {"policy": policy.to_dict(), "chunk": 1}


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=place)
        for place, each in enumerate(arguments)
    ]


def test_a_likelihood_is_that_over_the_evicted_context(make, pair, prompts):
    model, tokenizer = pair
    prompt, policy = prompts[0], kvpolicy.recipe("restkv", budget=40)
    [(found, greedy)] = make(recipe=policy).loglikelihood(
        requests("loglikelihood", (prompt.text, f" {prompt.answer}"))
    )
    ids = tokenizer(prompt.answer, add_special_tokens=False)["input_ids"]
    context = tokenizer(prompt.text)["input_ids"]
    with torch.no_grad():
        [logits] = logits_of_continuations(model, policy, context, [ids])
    chances = logits.log_softmax(-1)[range(len(ids)), ids]
    assert found == float(chances.sum())
    assert greedy == (logits.argmax(-1).tolist() == ids)


def test_a_context_is_read_once_for_all_its_choices(make, prompts):
    lm, lengths = make(recipe="restkv", budget=40), []
    first, second = (each.text for each in prompts[:2])
    texts = [(text, choice) for choice in (" amber", " oak", " lemon") for text in (first, second)]
    hook = lm.model.register_forward_pre_hook(
        lambda model, given, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    answers = lm.loglikelihood(requests("loglikelihood", *texts))
    hook.remove()
    assert lengths == [55, 1, 55, 1]
    alone = [lm.loglikelihood(requests("loglikelihood", each))[0] for each in texts]
    assert answers == alone


def test_a_rolling_text_is_read_in_chunks_with_an_eviction_after_each(make, prompts):
    [text] = requests("loglikelihood_rolling", (prompts[0].text,))
    streams = {
        chunk: make(recipe="streamingllm", budget=8, chunk=chunk).loglikelihood_rolling([text])[0]
        for chunk in (1, 16, 100)
    }
    [full] = make(HFLM).loglikelihood_rolling([text])
    assert streams[100] == pytest.approx(full)  # nothing was read after the first eviction
    assert len({round(each, 3) for each in streams.values()}) == 3


def test_texts_longer_than_the_model_lose_their_front_as_with_hflm(make, prompts):
    asked = requests("loglikelihood", (prompts[0].text, " amber"), (prompts[1].text, " oak"))
    short = {"max_length": 32}
    plain = make(HFLM, **short).loglikelihood(asked)
    assert make(recipe="knorm", budget=64, **short).loglikelihood(asked) == plain
    assert plain != make(HFLM).loglikelihood(asked)
    assert make(recipe="knorm", budget=16, **short).loglikelihood(asked) != plain


def test_each_request_has_a_cache_of_its_own(make, prompts):
    lm = make(recipe="restkv", budget=40)
    asked = [(each.text, {"until": ["."], "max_gen_toks": 3}) for each in prompts]
    together = lm.generate_until(requests("generate_until", *asked))
    alone = [lm.generate_until(requests("generate_until", each))[0] for each in asked]
    assert together == alone


def test_without_a_context_a_policy_has_no_effect_and_says_so(make, prompts):
    lone = requests("loglikelihood", ("", prompts[0].text))
    with pytest.raises(KvpolicyError, match=r"follow no context, .* Use a task of rolling"):
        make(recipe="snapkv", budget=40).loglikelihood(lone)
    # What fits into the budget, or is evicted while it is read, needs no context.
    assert make(recipe="snapkv", budget=80).loglikelihood(lone) == make(HFLM).loglikelihood(lone)
    decoding = kvpolicy.recipe("tova", budget=16)
    assert decoding.every == 1
    [(found, _)] = make(recipe=decoding).loglikelihood(lone)
    assert math.isfinite(found)
    assert found != make(HFLM).loglikelihood(lone)[0][0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recipe": "retskv", "budget": 64}, r"no recipe named 'retskv'. Did you mean 'restkv'"),
        ({"recipe": "restkv"}, "recipe 'restkv' needs a budget"),
        ({"recipe": "restkv", "budget": 8}, "budget 8 is smaller than the 32 positions"),
        ({"recipe": "restkv", "budget": "lots"}, "budget must be positions"),
        ({"recipe": "restkv", "budget": 0}, "budget must be at least 1"),
        ({"budget": 64}, "budget is 64, but there is no recipe"),
        ({"recipe": 3, "budget": 64}, "a recipe is a name, a policy, or a JSON file"),
        ({"recipe": "restkv", "budget": 64, "batch_size": 8}, "batch_size must be 1 with a recipe"),
        ({"recipe": "restkv", "budget": 64, "batch_size": "auto"}, "but is 'auto'"),
        ({"recipe": "restkv", "budget": 64, "chunk": 0}, "chunk must be 1 token or more"),
        ({"recipes": "restkv", "budget": 64}, "no option 'recipes'. Did you mean 'recipe'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_the_model_is_loaded(options, sentence):
    with pytest.raises(KvpolicyError, match=sentence):
        PolicyLM(pretrained="/not/there", **options)


def test_a_model_that_cannot_be_evicted_is_refused_at_once(pair):
    from transformers import MambaConfig, MambaForCausalLM

    small = MambaConfig(vocab_size=len(pair[1]), hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedModelError):
        PolicyLM(MambaForCausalLM(small), tokenizer=pair[1], recipe="restkv", budget=64)
