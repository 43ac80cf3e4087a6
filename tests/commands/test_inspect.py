"""`kvpolicy inspect` says which tokens survive, and what is wrong before a model is loaded."""

from __future__ import annotations

import json

import pytest

import kvpolicy
from kvpolicy.evaluation import needle


@pytest.fixture
def question():
    return needle.generate_prompts(tokens=256, facts=16, count=2, seed=0)[1]


@pytest.fixture
def inspect(run, question, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text(question.text)

    def inspect(*more, model=needle.MODEL, recipe="snapkv", budget="40", file="prompt.txt"):
        return run(
            *("inspect", "--model", str(model), "--recipe", recipe, "--budget", budget),
            *("--prompt-file", file, "--max-new-tokens", "4", *more),
        )

    return inspect


def test_a_wrong_answer_is_explained(inspect, question, tmp_path):
    result = inspect("--answer", question.answer)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"full cache: {question.answer} (right)" in lines
    assert "Needed tokens are missing." in lines
    assert "If they are kept, at the same budget, the answer is right." in lines
    assert lines[-1] == "Page: kvpolicy-inspect.html"
    assert "snapkv at 40" in (tmp_path / "kvpolicy-inspect.html").read_text()


def test_without_an_answer_only_what_is_kept_is_shown(inspect, tmp_path):
    result = inspect("--page", "mine.html")
    assert result.exit_code == 0, result.output
    assert "a key/value head holds 40.0 of them" in result.stdout
    assert "wrong" not in result.stdout
    assert "Why" not in (tmp_path / "mine.html").read_text()


def test_a_policy_may_come_from_a_file(inspect, tmp_path):
    policy = kvpolicy.recipe("snapkv", budget=512, sinks=2)
    (tmp_path / "mine.json").write_text(json.dumps(policy.to_dict()))
    result = inspect(recipe="mine.json", budget="25%")
    assert result.exit_code == 0, result.output
    assert "mine at 25 %: " in result.stdout
    assert "holds 64.0 of them" in result.stdout


def test_other_needed_words_can_be_given(inspect, question):
    result = inspect("--answer", question.answer, "--needed", "stands nowhere")
    assert result.exit_code == 2
    assert "--needed 'stands nowhere' stands nowhere in the prompt" in result.stderr


@pytest.mark.parametrize(
    ("given", "more", "sentence"),
    [
        ({"recipe": "snapvk"}, (), "no recipe named 'snapvk'. Did you mean 'snapkv'?"),
        ({"budget": "8"}, (), "recipe 'snapkv': budget 8 is smaller than the 32 positions"),
        ({"budget": "lots"}, (), "budget must be positions (1024) or a share"),
        ({"file": "nowhere.txt"}, (), "cannot read --prompt-file 'nowhere.txt'"),
        ({}, ("--page", "/no/page.html"), "cannot write --page '/no/page.html'"),
        ({}, ("--answer", " "), "--answer is empty"),
        ({}, (), "there is no folder '/not/there'"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(inspect, given, more, sentence):
    result = inspect(*more, model="/not/there", **given)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
