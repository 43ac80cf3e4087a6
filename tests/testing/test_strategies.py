"""Drawn observations cover what a scorer may meet in a model."""

import torch
from hypothesis import find

from kvpolicy import testing


def test_observations_cover_what_a_scorer_may_meet():
    cases = [
        lambda layer: layer.seen > layer.length,
        lambda layer: layer.window == layer.length > 1,
        lambda layer: layer.values.shape[-1] != layer.keys.shape[-1],
        lambda layer: layer.queries.shape[1] > layer.keys.shape[1] > 1,
        lambda layer: layer.attention.amax() > 0.999 and layer.length > 8,
    ]
    for case in cases:
        find(testing.observations(), case)


def test_observations_hold_ascending_positions_that_end_with_the_window():
    layer = find(testing.observations(), lambda layer: layer.seen > layer.length > layer.window > 1)
    assert (layer.positions.diff(dim=-1) > 0).all()
    recent = torch.arange(layer.seen - layer.window, layer.seen)
    assert (layer.positions[..., -layer.window :] == recent).all()
