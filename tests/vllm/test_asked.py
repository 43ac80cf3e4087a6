import json

import pytest

import kvpolicy
from kvpolicy.errors import (
    InvalidOptionError,
    InvalidValueError,
    KvpolicyError,
    UnknownComponentError,
)
from kvpolicy.vllm.asked import asked_in


def _asked(**given):
    return asked_in({"kvpolicy": given})


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, "kvpolicy"])
def test_an_engine_that_names_no_policy_gets_none(config):
    assert asked_in(config) is None


def test_a_recipe_may_be_changed():
    policy = _asked(recipe="snapkv", budget=256, scorer={"name": "snapkv", "window": 16}).policy
    assert (policy.budget, policy.scorer.window) == (256, 16)


@pytest.mark.parametrize("name", ["restkv", "snapkv", "expectedattention", "chunkkv", "random"])
def test_a_policy_is_read_as_it_describes_itself(name):
    policy = kvpolicy.recipe(name, budget=128)
    read = asked_in({"kvpolicy": json.loads(json.dumps(policy.to_dict()))}).policy
    assert read.parts == policy.parts
    assert read.settings == policy.settings


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"recipe": "snapvk"}, UnknownComponentError, "Did you mean 'snapkv'"),
        ({"recipe": 3}, InvalidValueError, "'recipe' must be the name of a recipe, not 3"),
        ({"recipe": "snapkv", "budgets": 3}, InvalidOptionError, "Did you mean 'budget'"),
        ({"budget": 3}, InvalidValueError, "needs a 'scorer'"),
        ({"recipe": "snapkv", "budget": 0}, InvalidValueError, "at least 1 position"),
        ({"recipe": "snapkv", "untested_vllm": 1}, InvalidValueError, "must be true or false"),
    ],
)
def test_what_makes_no_policy_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        _asked(**given)


@pytest.mark.parametrize("given", [None, "snapkv", ["snapkv"]])
def test_a_policy_must_be_a_mapping(given):
    with pytest.raises(KvpolicyError, match="must be a mapping"):
        asked_in({"kvpolicy": given})
