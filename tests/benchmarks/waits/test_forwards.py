"""What a layer makes the host of a GPU do does not grow, and the targets that were met stay met."""

import functools

import pytest
import torch

from benchmarks.waits.__main__ import recipes
from benchmarks.waits.forwards import BATCHES, costs

counted = functools.cache(costs)


@pytest.fixture(autouse=True)
def as_users_run_it():
    """PyTorch's deterministic algorithms take more operations."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


# caote had 23 before the error of a head's largest weight came from the others.
@pytest.mark.parametrize(("recipe", "launches"), [("snapkv", 18), ("restkv", 26), ("h2o", 18)])
def test_an_even_eviction_neither_waits_nor_copies(recipe, launches):
    found = counted(recipe, BATCHES[0])
    for phase in found.values():
        assert phase["waits"].layer == phase["copies"].layer == 0
        assert phase["waits"].forward == phase["copies"].forward == 0
        assert phase["launches"].layer <= launches


BOUNDS = {
    "adakv": ((36, 1), (5, 0)),
    "cam": ((22, 0), (22, 0)),
    "caote": ((24, 0), (2, 0)),
    "capkv": ((49, 0), (2, 0)),
    "chunkkv": ((29, 0), (2, 0)),
    "criticalkv": ((37, 0), (2, 0)),
    "dapq": ((22, 0), (2, 0)),
    "defensivekv": ((60, 1), (4, 0)),
    "expectedattention": ((46, 0), (2, 0)),
    "h2o": ((17, 0), (18, 0)),
    "keydiff": ((20, 0), (18, 0)),
    "knorm": ((15, 0), (2, 0)),
    "lacache": ((18, 0), (24, 0)),
    "lagkv": ((39, 0), (3, 0)),
    "lava": ((30, 0), (4, 0)),
    "layerdefensivekv": ((53, 0), (4, 0)),
    "lookm": ((24, 0), (25, 0)),
    "momentkv": ((39, 0), (11, 0)),
    "obcache": ((20, 0), (2, 0)),
    "pyramidkv": ((18, 0), (2, 0)),
    "random": ((13, 0), (2, 0)),
    "replay": ((56, 0), (2, 0)),
    "restkv": ((26, 0), (2, 0)),
    "rkv": ((46, 0), (3, 0)),
    "snapkv": ((18, 0), (2, 0)),
    "streamingllm": ((13, 0), (16, 0)),
    "think": ((44, 0), (2, 0)),
    "tova": ((15, 0), (13, 0)),
    "triattention": ((39, 0), (3, 0)),
}
"""By recipe: the launches and waits of a layer in a prompt, and in a decoded token.

A token of adakv takes 4, and 5 now and then; it is not known why.
"""


REPEATING = {"kvzip", "kvzipplus"}
"""Their prompts are read twice: what is counted would be the model's own operations, too."""


def test_every_recipe_has_a_bound_within_the_targets():
    assert set(BOUNDS) == set(recipes()) - REPEATING
    for (of_prompt, _), (of_token, _) in BOUNDS.values():
        assert of_prompt <= 60
        assert of_token <= 30


@pytest.mark.sampled(8, "recipe")
@pytest.mark.parametrize("recipe", sorted(BOUNDS))
def test_no_recipe_makes_the_host_do_more(recipe):
    found = counted(recipe, BATCHES[0])
    for phase, (launches, waits) in zip(("prompt", "token"), BOUNDS[recipe], strict=True):
        assert found[phase]["launches"].layer <= launches
        assert found[phase]["waits"].layer <= waits
        assert found[phase]["copies"].layer == 0
    # Beside its layers a token has its positions looked at, by the host every 16 forwards.
    assert found["token"]["waits"].forward == 0
    assert found["token"]["launches"].forward <= 3


@pytest.mark.sampled(12, "recipe")
@pytest.mark.parametrize("recipe", sorted(BOUNDS))
def test_eight_rows_that_hold_equally_many_cost_a_layer_half_more_than_one(recipe):
    alone, together = (counted(recipe, batch) for batch in (BATCHES[0], BATCHES[2]))
    for phase, (_, waits) in zip(("prompt", "token"), BOUNDS[recipe], strict=True):
        assert together[phase]["launches"].layer <= 1.5 * alone[phase]["launches"].layer
        assert together[phase]["waits"].layer <= waits
        assert together[phase]["copies"].layer == 0


@pytest.mark.parametrize("recipe", ["replay", "lava", "layerdefensivekv"])
def test_what_a_forward_costs_beside_its_layers_does_not_grow_with_its_rows(recipe):
    alone, together = (counted(recipe, batch) for batch in (BATCHES[0], BATCHES[2]))
    # The mask of a padded batch is looked at once.
    of_padding = counted("knorm", BATCHES[2])["prompt"]["launches"].forward
    beside = together["prompt"]["launches"].forward
    assert beside <= alone["prompt"]["launches"].forward + of_padding
