"""The mean smoother averages over the window and leaves positions as they are."""

import torch

from kvpolicy.stages.smoothing import LinearSmoother, MeanSmoother, Smoother
from kvpolicy.testing import observation


def test_the_queries_of_the_window_are_averaged():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert MeanSmoother().temporal(values).tolist() == [2.0, 4.0]


def test_positions_stay_as_they_are():
    scores = torch.arange(32.0).expand(1, 4, 32)
    assert torch.equal(MeanSmoother().spatial(scores, observation()), scores)


def test_a_smoother_with_weights_is_linear():
    assert isinstance(MeanSmoother(), LinearSmoother)
    assert not isinstance(object(), Smoother)
