"""What a layer makes the host of a GPU do does not grow, and the targets that were met stay met."""

import pytest
import torch

from benchmarks.waits.forwards import BATCHES, costs


@pytest.fixture(autouse=True)
def as_users_run_it():
    """PyTorch's deterministic algorithms take more operations."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(("recipe", "launches"), [("snapkv", 25), ("restkv", 45), ("h2o", 30)])
def test_an_even_eviction_neither_waits_nor_copies(recipe, launches):
    found = costs(recipe, BATCHES[0])
    for phase in found.values():
        assert phase["waits"].layer == phase["copies"].layer == 0
        assert phase["waits"].forward == phase["copies"].forward == 0
        assert phase["launches"].layer <= launches
