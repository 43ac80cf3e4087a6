"""A fold is one call, and says its weights where it is a weighted sum."""

import torch

from kvpolicy.observation.fold import Fold, is_maximum, weighted, weights_of
from kvpolicy.stages.smoothing import MeanSmoother, fold_of

VALUES = torch.tensor([[1.0, 2.0], [3.0, 6.0]])


class LargestSmoother:
    def temporal(self, values):
        return values.amax(-2)

    def spatial(self, scores, observation):
        return scores


def test_a_fold_is_called_with_the_window_and_gives_one_row():
    assert Fold(lambda values: values.amax(-2))(VALUES).tolist() == [3.0, 6.0]


def test_a_linear_smoother_gives_its_weights():
    assert weights_of(fold_of(MeanSmoother()), 2).tolist() == [0.5, 0.5]


def test_a_smoother_that_is_no_weighted_sum_has_no_weights():
    fold = fold_of(LargestSmoother())
    assert weights_of(fold, 2) is None
    assert fold(VALUES).tolist() == [3.0, 6.0]


def test_a_smoother_may_say_that_it_takes_the_maximum():
    class Named(LargestSmoother):
        folds_by_maximum = True

    assert is_maximum(fold_of(Named()))
    assert not is_maximum(fold_of(LargestSmoother()))
    assert not is_maximum(fold_of(MeanSmoother()))
    assert not is_maximum(lambda values: values.amax(-2))


def test_sequences_are_summed_by_their_own_weights():
    values = torch.arange(12.0).view(2, 1, 2, 3)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert weighted(weights, values).tolist() == [[[0, 1, 2]], [[7.5, 8.5, 9.5]]]
    assert torch.equal(weighted(weights[1], values)[1], weighted(weights, values)[1])


def test_a_plain_function_has_no_weights():
    assert weights_of(torch.Tensor.sum, 2) is None
