"""Whatever is given to `compose`, `recipe` and `from_dict`: a policy that is as asked, or a reason.

Every refusal is a KvpolicyError with a message; nothing that is given is ignored.
"""

from __future__ import annotations

import copy
import decimal
import fractions
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import kvpolicy
from kvpolicy.discovery.registry import installed
from kvpolicy.errors import InvalidComponentError, KvpolicyError
from kvpolicy.kinds import PARTS, SETTINGS
from kvpolicy.named import resolved

TABLE = [[1.0, 2.0], [3.0, 4.0]]
MORE = ({"name": "headkv", "importance": TABLE}, {"name": "skiplayers"}, {"name": "uniform"})
"""Allocators that no recipe uses."""
RECIPES = [part.name for part in installed("recipe")]
DESCRIBED = [kvpolicy.recipe(name).to_dict() for name in RECIPES] + [
    kvpolicy.recipe("snapkv", allocator=allocator).to_dict() for allocator in MORE
]


class Hostile:
    """Fails at whatever it is asked."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __eq__(self, other):
        raise RuntimeError("not comparable")

    __hash__ = None


def one_of(*values):
    """Draw one of the values, not all of which Hypothesis could print."""
    return st.integers(0, len(values) - 1).map(lambda index: values[index])


NUMBERS = one_of(
    *(0, -1, 1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 10**5000, True, 2j),
    *(math.nan, math.inf, -math.inf, 5e-324, 1.7e308, -0.0, 0.5),
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=8),
    one_of("\ud800", "\0", "[red]", "mean", "snapkv", "x" * 100_000, "None"),
)
ODDITIES = one_of(
    *(decimal.Decimal("0.5"), fractions.Fraction(1, 2), fractions.Fraction(10**400), range(3)),
    *(np.float32(0.5), np.int64(3), np.array([1, 2]), np.array(["mean"]), np.float64("nan")),
    *(torch.tensor(3), torch.tensor([1, 2]), torch.tensor(0.5), float, len, object(), Hostile()),
)
ATOMS = st.one_of(st.none(), st.integers(), st.floats(), NUMBERS, TEXTS, st.binary(max_size=4))
JUNK = st.recursive(
    st.one_of(ATOMS, ODDITIES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(TEXTS, st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def broken_somewhere(draw):
    """Draw what `to_dict` says of an installed recipe, changed in one place."""
    data = copy.deepcopy(draw(one_of(*DESCRIBED)))
    owner = draw(one_of(data, *(data[kind] for kind in PARTS)))
    key = draw(one_of(*owner))
    change = draw(one_of("replace", "remove", "add", "misspell"))
    if change == "replace":
        owner[key] = draw(JUNK)
    elif change == "remove":
        del owner[key]
    elif change == "add":
        owner[draw(st.one_of(TEXTS, st.integers()))] = draw(JUNK)
    else:
        owner[draw(one_of(f"{key}s", key[1:], key.upper(), f"{key} "))] = owner.pop(key)
    return data


def attempt(build, *arguments, **options):
    """Return what is built, or None if it is refused with a message of reasonable length."""
    try:
        return build(*arguments, **options)
    except KvpolicyError as error:
        message = str(error)
    assert 10 < len(message) < 3000, message[:200]
    return None


def check_as_asked(policy, data):
    """Hold a policy to what it was built of: nothing was ignored, changed or lost."""
    described = policy.to_dict()
    for key, asked in data.items():
        got = described[key]
        if isinstance(asked, str) and key in PARTS:
            assert got["name"] == asked
        elif isinstance(asked, dict):
            assert asked.items() <= got.items()
        elif not (key in ("recent", "group_order") and asked is None):
            assert got == asked
    assert json.loads(json.dumps(described)) == described
    again = kvpolicy.Policy.from_dict(described)
    assert again == policy
    assert again.to_dict() == described


@settings(deadline=None)
@given(broken_somewhere())
def test_a_description_that_is_broken_somewhere_is_refused_or_followed(data):
    policy = attempt(kvpolicy.Policy.from_dict, data)
    if policy is not None:
        check_as_asked(policy, data)


@settings(deadline=None)
@given(JUNK)
def test_junk_in_place_of_a_description_is_refused(data):
    assert attempt(kvpolicy.Policy.from_dict, data) is None


@settings(deadline=None)
@given(st.dictionaries(one_of(*PARTS, *SETTINGS, "buget", "name", "self"), JUNK, max_size=3))
@example({"name": "snapkv"})
@example({"budget": 10**5000})
@example({"scorer": {"name": "snapkv", "window": 10**5000}})
@example({"group": np.array(["mean"])})
def test_recipes_and_compose_take_what_they_can_and_refuse_the_rest(changes):
    asked = {"scorer": "snapkv"} | changes
    for policy in (attempt(kvpolicy.recipe, "snapkv", **changes), _composed(asked)):
        if policy is not None:
            check_as_asked(policy, changes)


def _composed(arguments):
    return attempt(kvpolicy.compose, **arguments)


@settings(deadline=None)
@given(JUNK)
def test_a_name_that_is_none_is_refused(name):
    assume(not isinstance(name, str) or name not in RECIPES)
    assert attempt(kvpolicy.recipe, name) is None
    assert attempt(kvpolicy.installed, name) is None or name is None


@settings(deadline=None)
@given(st.one_of(JUNK, st.fixed_dictionaries({"name": one_of("ashape", "a-shap"), "sinks": JUNK})))
def test_junk_in_place_of_a_prefill_pattern_is_refused_or_followed(prefill):
    pattern = attempt(lambda given: resolved("prefill_pattern", given).part, prefill)
    if pattern is not None:
        assert pattern.sinks == prefill["sinks"]


@pytest.mark.parametrize("setting", [*PARTS, *SETTINGS])
def test_a_value_that_fails_at_all_that_it_is_asked_is_refused(setting):
    with pytest.raises(KvpolicyError, match="<Hostile that has no repr>"):
        kvpolicy.recipe("snapkv", **{setting: Hostile()})


def test_an_argument_that_compose_does_not_have_is_named():
    with pytest.raises(KvpolicyError, match=r"no setting 'buget'\. Did you mean 'budget'"):
        kvpolicy.compose(scorer="snapkv", buget=3)


def test_what_json_cannot_hold_cannot_be_described():
    class Repeats:
        def future_of(self, observation):
            raise NotImplementedError

    policy = kvpolicy.compose(scorer={"name": "oracle", "future": Repeats()})
    with pytest.raises(
        InvalidComponentError, match=r"'oracle' .* its option 'future' is not plain data"
    ):
        policy.to_dict()


def test_an_option_is_described_by_the_name_that_it_is_given_by(install_plugin):
    install_plugin(
        "private",
        """
        import attrs, kvpolicy
        from kvpolicy.stages.smoothing import MeanSmoother

        @attrs.frozen(kw_only=True)
        class Private(MeanSmoother):
            _width: int = 3
            twice: int = attrs.field(init=False, default=6)

        @kvpolicy.hookimpl
        def kvpolicy_smoothers():
            return {"private": Private}
        """,
    )
    policy = kvpolicy.compose(scorer="snapkv", smoother={"name": "private", "width": 5})
    assert policy.to_dict()["smoother"] == {"name": "private", "width": 5}
    assert kvpolicy.Policy.from_dict(policy.to_dict()) == policy
