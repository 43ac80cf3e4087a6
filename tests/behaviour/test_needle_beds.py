"""On each needle model the oracle of sets is no worse than the one of single positions."""

from pathlib import Path

import pytest

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.beds.answers import answered
from kvpolicy.evaluation.beds.measurement import measured
from kvpolicy.evaluation.beds.prompts import needle_beds
from kvpolicy.evaluation.fidelity.rows import Estimate

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"
FOLDERS = {
    "needle": needle.MODEL,
    "redundant": EXAMPLE / "redundant",
    "chained": EXAMPLE / "chained",
}
PROMPTS = 2


@pytest.fixture(scope="module", params=FOLDERS)
def beds(request):
    """The same prompts, with the question visible and hidden."""
    return list(needle_beds(PROMPTS, FOLDERS[request.param]))


@pytest.mark.parametrize("budget", [40, pytest.param(64, marks=pytest.mark.deep)])
def test_a_set_is_never_worse_than_single_positions(beds, budget):
    for bed in beds:
        mine, single = (measured(bed, name, budget) for name in ("oracle", "oracle_single"))
        assert Estimate.mean(mine.errors).value <= Estimate.mean(single.errors).value


def test_the_full_cache_answers(beds):
    for bed in beds:
        assert answered(None, bed.recordings[0], bed.readers[0], bed.answer).share == 1
