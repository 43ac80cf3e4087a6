import pytest
import torch

from kvpolicy.observation.mean_rotation import MeanRotation
from kvpolicy.observation.rotary import PlainRotary, rotated


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [4, 8])
def test_it_is_the_mean_of_the_vectors_at_all_positions(dim, interleaved):
    rotary = PlainRotary(dim=dim, base=100.0, interleaved=interleaved)
    vectors, positions = torch.randn(2, 3, 8), torch.tensor([5, 6, 8, 12, 20])
    cosines, sines = rotary.tables(positions)
    found = MeanRotation(cosines=cosines, sines=sines, interleaved=interleaved)(vectors)
    expected = torch.stack([rotated(vectors, place, rotary) for place in positions]).mean(0)
    torch.testing.assert_close(found, expected)
