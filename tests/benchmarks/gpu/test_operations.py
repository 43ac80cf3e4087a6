"""A difference is that of the worst tensor."""

import torch

from benchmarks.gpu.operations import difference


def test_difference_is_that_of_the_worst_tensor():
    one = torch.tensor([1.0, -4.0])
    assert difference(one, one) == 0
    assert difference((one, one + 1), (one, one)) == 0.25
    assert difference(one, one.double()) == float("inf")
    assert difference(one * torch.nan, one) == float("inf")
