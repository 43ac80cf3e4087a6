"""Vectors turned forth and back by rotary tables."""

import pytest
import torch

from kvpolicy.observation.rotary import PlainRotary, pair_sizes, rotated, unrotated
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


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [4, 8])
def test_rotating_is_a_product_of_complex_numbers(interleaved, dim):
    rotary = PlainRotary(dim=dim, base=100.0, interleaved=interleaved)
    raw, positions = normal(0, 2, 3, 5, 8).double(), torch.arange(7, 12)
    angles = positions[:, None].double() * 100.0 ** (-torch.arange(0, dim, 2).double() / dim)
    pairs = raw[..., :dim].unflatten(-1, (-1, 2) if interleaved else (2, -1))
    real, imaginary = pairs.unbind(-1 if interleaved else -2)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    both = torch.stack([turned.real, turned.imag], -1 if interleaved else -2).flatten(-2)

    actual = rotated(raw.float(), positions, rotary)

    expected = torch.cat([both, raw[..., dim:]], -1).float()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_sizes_of_pairs_are_those_of_complex_numbers_and_rotating_keeps_them(interleaved, dtype):
    rotary = PlainRotary(dim=8, interleaved=interleaved)
    raw = normal(0, 2, 3, 20, 12).to(dtype)
    parts = (raw[..., :8:2], raw[..., 1:8:2]) if interleaved else raw[..., :8].chunk(2, -1)
    expected = torch.complex(*(part.double() for part in parts)).abs().float()
    found = pair_sizes(raw, 4, interleaved=interleaved)
    torch.testing.assert_close(found, expected)
    turned = rotated(raw, torch.arange(20), rotary)
    torch.testing.assert_close(pair_sizes(turned, 4, interleaved=interleaved), expected)
