"""What a layer makes the host of a GPU do does not grow, and the targets that were met stay met."""

import pytest
import torch

from benchmarks.rows import read
from benchmarks.waits.__main__ import PATH, counted, recipes
from benchmarks.waits.forwards import BATCHES, costs

UNEVEN = {"adakv", "defensivekv", "layerdefensivekv"}
PLANS_ON_THE_HOST, DRAWS_ON_THE_HOST = {"lacache"}, {"cam", "random"}
HELD = {(row.name, row.variant, row.benchmark): row for row in read(PATH)}
BATCH = {batch.name: batch for batch in BATCHES}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """PyTorch's deterministic algorithms take more operations."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.sampled(5, "recipe", "batch")
@pytest.mark.parametrize("batch", BATCH)
@pytest.mark.parametrize("recipe", recipes())
def test_no_count_is_above_the_one_that_was_reached(recipe, batch):
    for row in counted(recipe, BATCH[batch]):
        known = HELD[row.name, row.variant, row.benchmark]
        assert row.value <= known.value, row
        assert row.settings["forward"] <= known.settings["forward"], row


@pytest.mark.parametrize(("recipe", "launches"), [("snapkv", 30), ("tova", 30)])
def test_an_even_eviction_neither_waits_nor_copies(recipe, launches):
    found = costs(recipe, BATCHES[0])
    for phase in found.values():
        assert phase["waits"].layer == phase["copies"].layer == 0
        assert phase["waits"].forward == phase["copies"].forward == 0
        assert phase["launches"].layer <= launches


def test_the_rows_hold_every_recipe_and_the_targets_that_are_met():
    assert {name for name, _, _ in HELD} == set(recipes())
    for (name, variant, benchmark), row in HELD.items():
        if variant == "B = 1: waits" and name not in PLANS_ON_THE_HOST:
            assert row.value <= (name in UNEVEN and benchmark == "waits.prompt"), row
        if variant == "B = 1: copies" and name not in PLANS_ON_THE_HOST | DRAWS_ON_THE_HOST:
            assert row.value == 0, row
