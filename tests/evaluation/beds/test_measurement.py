"""The errors of a policy on a bed are its own."""

from kvpolicy.evaluation.beds.measurement import measured
from kvpolicy.evaluation.beds.prompts import needle_beds


def test_replayed_queries_lower_the_errors_of_the_needle_model():
    """The question is visible; the difference is many standard errors in docs/results."""
    bed = next(needle_beds(2))
    base, mine = (measured(bed, name, 64) for name in ("restkv", "replay"))
    assert bed.name == base.bed == "needle, visible"
    assert all(less < more for less, more in zip(mine.errors, base.errors, strict=True))


def test_a_budget_that_a_recipe_refuses_is_its_refusal():
    found = measured(next(needle_beds(2)), "momentkv", 8, answers=True)
    assert not found.errors
    assert "budget 8 is smaller than" in found.refusal
