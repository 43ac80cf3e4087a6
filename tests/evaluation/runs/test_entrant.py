"""Recipes, policies and files become entrants at each budget."""

from __future__ import annotations

import json

import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnknownComponentError
from kvpolicy.evaluation.runs.entrant import entrants


def test_the_full_cache_comes_first_and_then_each_recipe_at_each_budget():
    found = entrants(["restkv", "streamingllm"], [64, 0.25, 64])
    assert [each.title for each in found] == [
        "full",
        "restkv at 64",
        "restkv at 25 %",
        "streamingllm at 64",
        "streamingllm at 25 %",
    ]
    assert found[0].policy is None
    assert found[2].policy == kvpolicy.recipe("restkv", budget=0.25)


def test_references_take_part_at_every_budget_if_wanted():
    policy = kvpolicy.recipe("snapkv", budget=48)
    titles = [each.title for each in entrants([policy], [], random=True, oracle=True)]
    assert titles == ["full", "snapkv at 48", "random at 48", "oracle at 48"]
    titles = [each.title for each in entrants(["random"], [8, 0.5], random=True)]
    assert titles == ["full", "random at 8", "random at 50 %"]
    assert [each.title for each in entrants([], [], random=True, oracle=True)] == ["full"]


def test_a_reference_has_the_code_of_its_own_plugin():
    _, random, oracle = entrants([], [8], random=True, oracle=True)
    assert len({random.code, oracle.code}) == 2
    assert not random.is_oracle
    assert oracle.is_oracle


def test_a_refused_budget_is_an_entrant_with_a_reason():
    refused, accepted = entrants(["snapkv"], [8, 64])[1:]
    assert "budget 8 is smaller" in refused.refusal
    assert refused.policy is None
    assert accepted.refusal is None


def test_a_file_holds_a_policy_whose_budget_is_replaced(tmp_path):
    policy = kvpolicy.recipe("snapkv", budget=512, sinks=2)
    (tmp_path / "mine.json").write_text(json.dumps(policy.to_dict()))
    _, found = entrants([str(tmp_path / "mine.json")], [64])
    assert (found.name, found.policy.budget, found.policy.sinks) == ("mine", 64, 2)


def test_a_policy_keeps_its_own_budget_where_none_is_given():
    policy = kvpolicy.recipe("snapkv", budget=48)
    _, own = entrants([policy], [])
    _, other = entrants({"mine": policy.to_dict()}, [64])
    assert (own.title, other.title) == ("snapkv at 48", "mine at 64")


@pytest.mark.parametrize(
    ("recipes", "budgets", "error", "sentence"),
    [
        (["snapvk"], [64], UnknownComponentError, "Did you mean 'snapkv'"),
        (["snapkv"], [0], InvalidValueError, "at least 1 position"),
        (["snapkv"], [], InvalidValueError, "needs a budget, but there is none"),
        (["snapkv", "snapkv"], [64], InvalidValueError, "two recipes are called 'snapkv'"),
        ({"full": "snapkv"}, [64], InvalidValueError, "two recipes are called 'full'"),
        ({"oracle": "snapkv"}, [64], InvalidValueError, "'oracle' is the name of a reference"),
        ([64], [64], InvalidValueError, "a recipe is a name, a policy, or a JSON file"),
        (["/no/such.json"], [64], InvalidValueError, "cannot read the policy in '/no/such.json'"),
    ],
)
def test_what_is_no_recipe_is_said(recipes, budgets, error, sentence):
    with pytest.raises(error, match=sentence):
        entrants(recipes, budgets)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_holds_no_policy_is_named(content, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InvalidValueError, match=r"bad\.json"):
        entrants([str(tmp_path / "bad.json")], [64])
