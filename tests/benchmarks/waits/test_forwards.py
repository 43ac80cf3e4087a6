"""What a layer makes the host of a GPU do does not grow, and the targets that were met stay met."""

import pytest
import torch

from benchmarks.waits.__main__ import recipes
from benchmarks.waits.forwards import BATCHES, costs


@pytest.fixture(autouse=True)
def as_users_run_it():
    """PyTorch's deterministic algorithms take more operations."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


# caote had 23 before the error of a head's largest weight came from the others.
@pytest.mark.parametrize(("recipe", "launches"), [("snapkv", 19), ("restkv", 39), ("h2o", 23)])
def test_an_even_eviction_neither_waits_nor_copies(recipe, launches):
    found = costs(recipe, BATCHES[0])
    for phase in found.values():
        assert phase["waits"].layer == phase["copies"].layer == 0
        assert phase["waits"].forward == phase["copies"].forward == 0
        assert phase["launches"].layer <= launches


BOUNDS = {
    "adakv": ((39, 1), (5, 0)),
    "cam": ((49, 0), (49, 0)),
    "caote": ((32, 0), (2, 0)),
    "chunkkv": ((31, 0), (2, 0)),
    "criticalkv": ((38, 0), (2, 0)),
    "defensivekv": ((64, 1), (4, 0)),
    "expectedattention": ((51, 0), (2, 0)),
    "h2o": ((21, 0), (23, 0)),
    "keydiff": ((20, 0), (18, 0)),
    "knorm": ((15, 0), (2, 0)),
    "lacache": ((30, 1), (49, 2)),
    "lagkv": ((39, 0), (3, 0)),
    "lava": ((39, 0), (4, 0)),
    "layerdefensivekv": ((55, 0), (4, 0)),
    "lookm": ((49, 0), (53, 0)),
    "pyramidkv": ((19, 0), (2, 0)),
    "random": ((13, 0), (2, 0)),
    "replay": ((151, 0), (2, 0)),
    "restkv": ((39, 0), (2, 0)),
    "rkv": ((46, 0), (3, 0)),
    "snapkv": ((19, 0), (2, 0)),
    "streamingllm": ((14, 0), (22, 0)),
    "think": ((45, 0), (2, 0)),
    "tova": ((17, 0), (15, 0)),
}
"""By recipe: the launches and waits of a layer in a prompt, and in a decoded token.

A token of adakv takes 4, and 5 now and then; it is not known why.
"""


def test_every_recipe_has_a_bound():
    assert set(BOUNDS) == set(recipes())


@pytest.mark.sampled(8, "recipe")
@pytest.mark.parametrize("recipe", sorted(BOUNDS))
def test_no_recipe_makes_the_host_do_more(recipe):
    found = costs(recipe, BATCHES[0])
    for phase, (launches, waits) in zip(("prompt", "token"), BOUNDS[recipe], strict=True):
        assert found[phase]["launches"].layer <= launches
        assert found[phase]["waits"].layer <= waits
        assert found[phase]["copies"].layer == 0
