"""Everyone who is compared has a policy of the budget asked for."""

import pytest

from kvpolicy.evaluation.beds.entrants import BASE, ENTRANTS, FEW
from kvpolicy.evaluation.beds.prompts import needle_beds


@pytest.fixture(scope="module")
def bed():
    return next(needle_beds(2))


@pytest.mark.parametrize("name", ENTRANTS)
def test_everyone_has_a_policy(bed, name):
    assert ENTRANTS[name](bed.recordings[0], 40).budget == 40


def test_forward_has_replayed_queries_and_width_3_unless_its_title_says_else(bed):
    scorers = {
        name: ENTRANTS[name](bed.recordings[0], 40).scorer
        for name in ENTRANTS
        if name.startswith("forward")
    }
    assert {(name, each.hops, each.width) for name, each in scorers.items()} == {
        ("forward", 3, 3),
        ("forward, width 1", 3, 1),
        ("forward, width 5", 3, 5),
        ("forward, no hop", 0, 3),
        ("forward, no hop, width 1", 0, 1),
        ("forward, no hop, width 5", 0, 5),
    }


def test_the_base_is_among_the_few():
    assert BASE in FEW
    assert set(FEW) < set(ENTRANTS)
