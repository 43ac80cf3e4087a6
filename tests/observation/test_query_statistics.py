import attrs
import pytest
import torch

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.query_statistics import NEAR, query_statistics, rotary_for
from kvpolicy.observation.rotary import DisplacedRotary, PlainRotary, pair_sizes, rotated, unrotated
from kvpolicy.testing import observation

ROTARIES = {
    "whole": PlainRotary(dim=8, base=100.0),
    "interleaved": PlainRotary(dim=8, base=100.0, interleaved=True),
    "partial": PlainRotary(dim=4, base=100.0),
    "displaced": DisplacedRotary(rotary=PlainRotary(dim=8, base=100.0), by=1000),
}
AHEAD = torch.tensor([1601, 1602, 1604])


@pytest.mark.parametrize("window", [1, 40, NEAR, NEAR + 1, 3 * NEAR - 5])
@pytest.mark.parametrize("rotary", ROTARIES.values(), ids=ROTARIES)
def test_statistics_are_those_before_rotary_embedding_turned_ahead(rotary, window):
    layer = observation(positions=1600, window=window, rotary=rotary, batch=2)
    plain = unrotated(layer.queries, layer.query_positions, rotary).double()
    turn = torch.stack([rotated(torch.eye(8), at, rotary) for at in AHEAD]).mean(0).double().T
    apart = (plain - plain.mean(2, keepdim=True)) @ turn.T

    found = query_statistics(layer, rotary, AHEAD, covariance=True, dispersion=True)

    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.mean.double(), plain.mean(2) @ turn.T, **close)
    torch.testing.assert_close(found.covariance.double(), apart.mT @ apart / window, **close)
    pairs = rotary.tables(AHEAD)[0].shape[-1] // 2
    sizes, centre = (
        pair_sizes(each, pairs, interleaved=rotary.interleaved) for each in (plain, plain.mean(2))
    )
    torch.testing.assert_close(found.dispersion, sizes.mean(2) - centre, **close)


@pytest.mark.parametrize(
    ("seen", "window", "counted"), [(9, 9, 5), (9, 6, 5), (9, 2, 2), (3, 3, 3)]
)
def test_queries_of_sinks_are_left_out_unless_there_are_no_others(seen, window, counted):
    layer = observation(positions=seen, window=window)
    last = attrs.evolve(layer, queries=layer.queries[:, :, -counted:])
    found = query_statistics(layer, layer.rotary, AHEAD, sinks=4)
    assert torch.equal(found.mean, query_statistics(last, layer.rotary, AHEAD).mean)


def test_only_what_is_asked_for_is_computed():
    layer = observation(positions=9, window=9)
    found = query_statistics(layer, layer.rotary, AHEAD)
    assert found.covariance is None
    assert found.dispersion is None


def test_a_part_without_a_known_rotary_embedding_is_named():
    with pytest.raises(UnsupportedModelError, match=r"scorer 'x' turns queries .* is not known"):
        rotary_for(observation(rotary=None), "scorer 'x'")
