"""A budget is a number of positions or a share of the prompt, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvpolicy
from kvpolicy import budget as budget_module
from kvpolicy.budget import checked_budget, positions_of
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
