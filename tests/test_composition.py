"""Policies are composed from names, mappings or objects, and turn to plain data and back."""

import inspect
import json

import attrs
import pytest

import kvpolicy
from kvpolicy import errors
from kvpolicy.composition import Settings
from kvpolicy.kinds import PARTS, SETTINGS
from kvpolicy.stages.smoothing import MeanSmoother


def test_a_part_may_be_a_name_a_mapping_or_an_object():
    by_name = kvpolicy.compose(scorer="snapkv", smoother="mean")
    by_mapping = kvpolicy.compose(scorer={"name": "snapkv"}, smoother={"name": "mean"})
    by_object = kvpolicy.compose(scorer="snapkv", smoother=MeanSmoother())
    assert by_name == by_mapping == by_object


def test_recent_defaults_to_the_window_of_the_scorer():
    assert kvpolicy.compose(scorer={"name": "snapkv", "window": 7}).recent == 7
    assert kvpolicy.compose(scorer="snapkv", recent=3).recent == 3
    assert kvpolicy.compose(scorer=Patient()).recent == 0


def test_a_recipe_may_be_changed_in_part():
    policy = kvpolicy.recipe("snapkv", smoother="mean", budget=64)
    assert policy == kvpolicy.compose(scorer="snapkv", smoother="mean", budget=64)


def test_the_settings_of_a_recipe_are_the_arguments_of_compose():
    arguments = set(inspect.signature(kvpolicy.compose).parameters) - {"unknown"}
    assert set(Settings.__annotations__) == arguments == {*PARTS, *SETTINGS}


def test_a_mapping_without_a_name_changes_options_of_the_recipes_own_part():
    policy = kvpolicy.recipe("snapkv", scorer={"window": 64}, budget=128)
    assert policy == kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 64}, budget=128)
    assert policy.recent == 64
    with pytest.raises(errors.InvalidOptionError, match="scorer 'snapkv' has no option 'widnow'"):
        kvpolicy.recipe("snapkv", scorer={"widnow": 64})


def test_an_option_that_is_given_as_a_setting_is_answered_with_the_right_form():
    with pytest.raises(errors.InvalidOptionError, match=r"scorer 'restkv': scorer={'window': 64}"):
        kvpolicy.recipe("restkv", window=64)
    right = r"smoother 'pooling': smoother={'name': 'pooling', 'width': 3}"
    with pytest.raises(errors.InvalidOptionError, match=right):
        kvpolicy.compose(scorer="snapkv", smoother="pooling", width=3)


@pytest.mark.parametrize(
    "policy",
    [
        kvpolicy.compose(scorer={"name": "restkv", "tau": 0.5}, budget=0.25, group="max"),
        kvpolicy.recipe("streamingllm", budget=64, every=8),
        kvpolicy.recipe("snapkv", sinks=4, recent=1),
    ],
    ids=["share", "every", "recent"],
)
def test_a_policy_survives_a_trip_through_json(policy):
    data = json.loads(json.dumps(policy.to_dict()))
    assert kvpolicy.Policy.from_dict(data) == policy


def test_a_description_spells_out_every_option():
    described = kvpolicy.compose(scorer="snapkv", budget=64).to_dict()
    assert described == {
        "scorer": {"name": "snapkv", "window": 32},
        "smoother": {"name": "mean"},
        "allocator": {"name": "uniform"},
        "selector": {"name": "topk"},
        "compactor": {"name": "gather"},
        "budget": 64,
        "group": "mean",
        "group_order": "after",
        "layer_group": None,
        "sinks": 0,
        "recent": 32,
        "every": None,
        "per_turn": False,
        "slot_positions": False,
    }


def test_an_object_whose_class_is_registered_is_described_by_its_name():
    data = kvpolicy.compose(scorer="snapkv", smoother=MeanSmoother()).to_dict()
    assert data["smoother"] == {"name": "mean"}


def test_an_object_that_no_plugin_offers_cannot_be_described():
    with pytest.raises(errors.InvalidComponentError, match=r"scorer Patient\(\) cannot be descri"):
        kvpolicy.compose(scorer=Patient()).to_dict()


def test_a_part_cannot_be_described_by_the_name_of_another():
    policy = kvpolicy.compose(scorer="snapkv")
    changed = attrs.evolve(policy, scorer=kvpolicy.compose(scorer="restkv").scorer)
    assert changed.to_dict()["scorer"]["name"] == "restkv"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scorer": "retskv"}, errors.UnknownComponentError, "Did you mean 'restkv'"),
        ({"scorer": "spatiotemporal"}, errors.UnknownComponentError, "There is a smoother"),
        ({"scorer": "headkv"}, errors.UnknownComponentError, "There is an allocator"),
        ({"scorer": {"name": "restkv", "taus": 2}}, errors.InvalidOptionError, "mean 'tau'"),
        ({"scorer": {"name": "restkv", "tau": -1}}, errors.InvalidValueError, "'restkv': 'tau'"),
        ({"scorer": {"nam": "restkv"}}, errors.InvalidValueError, "mapping with a 'name'"),
        ({"scorer": {"name": 3}}, errors.InvalidValueError, "mapping with a 'name'"),
        ({"scorer": {}}, errors.InvalidValueError, "mapping with a 'name'"),
        ({"scorer": None}, errors.InvalidComponentError, "a mapping or a Scorer .*, not None"),
        ({"scorer": MeanSmoother()}, errors.InvalidComponentError, "not MeanSmoother"),
        (
            {"smoother": MeanSmoother},
            errors.InvalidComponentError,
            "a mapping or a Smoother .*, not",
        ),
    ],
)
def test_a_part_that_cannot_be_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        kvpolicy.compose(**{"scorer": "snapkv"} | arguments)


def test_a_recipe_names_an_argument_that_it_does_not_know():
    with pytest.raises(errors.InvalidOptionError, match=r"recipe 'snapkv' .*mean 'budget'"):
        kvpolicy.recipe("snapkv", buget=64)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("snapkv", errors.InvalidValueError, "described by a mapping of scorer, smoother"),
        (None, errors.InvalidValueError, "described by a mapping"),
        ({}, errors.InvalidValueError, "needs a 'scorer'; got none"),
        ({"budget": 64}, errors.InvalidValueError, "needs a 'scorer'; got budget"),
        ({"scorer": "snapkv", "sink": 4}, errors.InvalidOptionError, "Did you mean 'sinks'"),
        ({"scorer": "snapkv", 3: 4}, errors.InvalidOptionError, "no setting 3"),
        ({"scorer": "snapkv", "budget": "all"}, errors.InvalidValueError, "is 'all'"),
        ({"scorer": ["snapkv"]}, errors.InvalidComponentError, r"not \['snapkv'\]"),
    ],
)
def test_junk_is_no_policy(data, error, message):
    with pytest.raises(error, match=message):
        kvpolicy.Policy.from_dict(data)


def test_every_error_is_one_of_kvpolicy_and_a_builtin():
    builtin = (LookupError, TypeError, ValueError, RuntimeError, ImportError)
    raised = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.KvpolicyError)
    ]
    assert all(issubclass(each, builtin) for each in raised if each is not errors.KvpolicyError)


@attrs.frozen
class Patient:
    """Looks at every query, and has no name."""

    window = None

    def score(self, observation, reduce):
        return observation.folded_attention(reduce)
