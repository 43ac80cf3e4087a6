"""A budget is a number of positions, a share of the prompt or an error, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvpolicy
from kvpolicy import budget as budget_module
from kvpolicy.budget import Within, checked_budget, plain, positions_of, read_budget, written
from kvpolicy.errors import InvalidValueError


@given(st.integers(1, 10**9))
def test_an_int_counts_positions_whatever_the_prompt(budget):
    assert positions_of(budget, 5, protected=1) == budget


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**6), st.integers(0, 64))
def test_a_share_is_rounded_down_but_never_below_what_is_protected(share, seen, protected):
    positions = positions_of(share, seen, protected=protected)
    assert positions >= max(1, protected)
    assert positions <= max(1, protected, share * seen + 1e-6)


@given(st.integers(1, 100), st.integers(1, 10**4))
def test_a_share_in_percent_is_exact(percent, hundreds):
    expected = max(1, percent * hundreds)
    assert positions_of(percent / 100, 100 * hundreds, protected=0) == expected


def test_numbers_of_numpy_are_numbers():
    assert checked_budget(np.int64(64)) == 64
    assert checked_budget(np.float32(0.5)) == 0.5


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "at least 1 position, but is 0"),
        (-3, "at least 1 position, but is -3"),
        (0.0, "above 0 and at most 1, but is 0.0"),
        (-0.5, "above 0 and at most 1, but is -0.5"),
        (1.5, "at most 1, but is 1.5.$"),
        (256.0, "For positions give an int: budget=256."),
        (float("nan"), "but is nan"),
        (float("inf"), "but is inf"),
        (True, "but is True"),
        ("64", "but is '64'"),
        (None, "but is None"),
        (2j, "but is 2j"),
    ],
)
def test_what_is_no_budget_is_named(budget, message):
    with pytest.raises(InvalidValueError, match=message):
        kvpolicy.compose(scorer="snapkv", budget=budget)


def test_a_budget_must_hold_what_is_protected():
    with pytest.raises(InvalidValueError, match=r"the 36 positions .* sinks 4 \+ recent 32"):
        kvpolicy.compose(scorer="snapkv", sinks=4, budget=35)
    assert kvpolicy.compose(scorer="snapkv", sinks=4, budget=36).protected == 36


def test_a_share_that_is_too_small_for_what_is_protected_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(budget_module, "_SAID", set())
    assert [positions_of(0.01, seen, protected=36) for seen in (20, 200, 300)] == [36, 36, 36]
    [record] = caplog.records
    assert record.name == "kvpolicy"
    assert "1 % of 200 tokens is 2 positions, but sinks and recent tokens protect 36" in (
        record.getMessage()
    )


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("within:0.02", Within(0.02)),
        (" within : 2 % ", Within(0.02)),
        ("within:0.5:64", Within(0.5, cap=64)),
        ("within:1%:25%", Within(0.01, cap=0.25)),
    ],
)
def test_an_error_target_is_read_and_written(text, target):
    assert read_budget(text) == target
    assert checked_budget(json.loads(json.dumps(plain(target)))) == target


def test_an_error_target_is_written_as_people_do():
    assert written(Within(0.005)) == "within 0.5 %"
    assert written(Within(0.05, cap=0.25, window=8)) == "within 5 %, at most 25 %, window 8"


@pytest.mark.parametrize(
    "error", [0, 1, 1.0, 0.0, -0.1, 2, float("nan"), float("inf"), "2%", None, True]
)
def test_an_error_target_lies_between_0_and_1(error):
    with pytest.raises(InvalidValueError, match="above 0 and below 1, but is"):
        kvpolicy.within(error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"within": 0.1, "cap": 0}, "at least 1 position, but is 0"),
        ({"within": 0.1, "cap": {"within": 0.1}}, r"positions \(an int\) or a share"),
        ({"within": 0.1, "window": 0}, "at least 1, not 0"),
        ({"within": 0.1, "caps": 9}, "no 'caps'. Did you mean 'cap'?"),
        ({"cap": 9}, "has 'within', not"),
    ],
)
def test_what_is_no_error_target_is_named(given, message):
    with pytest.raises(InvalidValueError, match=message):
        kvpolicy.compose(scorer="snapkv", budget=given)


@pytest.mark.parametrize(
    "text", ["within", "within:", "within:0.02:", "within:lots", "without:0.1"]
)
def test_text_that_is_no_error_target_is_refused(text):
    with pytest.raises(InvalidValueError, match="budget must be positions"):
        read_budget(text)


def test_a_policy_with_an_error_target_goes_to_json_and_back():
    policy = kvpolicy.recipe("restkv", budget=kvpolicy.within(0.02, cap=512))
    data = json.loads(json.dumps(policy.to_dict()))
    assert data["budget"] == {"within": 0.02, "cap": 512, "window": 32}
    assert kvpolicy.Policy.from_dict(data) == policy
