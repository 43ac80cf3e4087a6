"""Vectors turned forth and back by rotary tables."""

import pytest
import torch

from kvpolicy.observation.rotary import PlainRotary, unrotated
from kvpolicy.testing.samples import normal
from kvpolicy_kernels import rotate_half


@pytest.mark.parametrize("interleaved", [False, True])
def test_unrotating_undoes_a_rotation(interleaved):
    rotary = PlainRotary(dim=8, interleaved=interleaved)
    raw, positions = normal(0, 2, 3, 20, 12), torch.arange(1000, 1020)
    cosines, sines = rotary.tables(positions)
    turned = raw[..., :8] * cosines + rotate_half(raw[..., :8], interleaved=interleaved) * sines

    back = unrotated(torch.cat([turned, raw[..., 8:]], -1), positions, rotary)

    torch.testing.assert_close(back, raw, rtol=0, atol=1e-5)


def test_products_of_rotated_vectors_depend_on_distance_alone():
    rotary = PlainRotary(dim=8, base=100.0)
    query, key = normal(0, 8), normal(1, 8)

    def product(at_query, at_key):
        turned = []
        for vector, place in ((query, at_query), (key, at_key)):
            cosines, sines = rotary.tables(torch.tensor(place))
            turned.append(vector * cosines + rotate_half(vector, interleaved=False) * sines)
        return turned[0] @ turned[1]

    torch.testing.assert_close(product(30, 20), product(510, 500), rtol=1e-4, atol=1e-4)
    assert (product(30, 20) - product(31, 20)).abs() > 1e-2
