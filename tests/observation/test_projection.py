"""The factors of an output projection are made once, and again when it changes."""

import gc

import torch

from kvpolicy.observation import projection
from kvpolicy.observation.projection import output_factors
from kvpolicy.testing.samples import normal


def test_factors_are_made_once_for_each_weight():
    weight = normal(0, 16, 8)
    assert output_factors(weight, 2) is output_factors(weight, 2)
    assert output_factors(weight, 2) is not output_factors(weight.clone(), 2)


def test_a_weight_that_changed_is_factorised_anew():
    weight = normal(0, 16, 8)
    before = output_factors(weight, 2)
    weight.mul_(3)
    torch.testing.assert_close(output_factors(weight, 2).abs(), 3 * before.abs())


def test_another_number_of_heads_has_factors_of_its_own():
    weight = normal(0, 16, 8)
    assert output_factors(weight, 2).shape == (2, 4, 4)
    assert output_factors(weight, 4).shape == (4, 2, 2)


def test_factors_are_forgotten_with_their_weight():
    weight = normal(0, 16, 8)
    output_factors(weight, 2)
    gc.collect()
    known = len(projection._factors)
    del weight
    gc.collect()
    assert len(projection._factors) == known - 1


def test_weights_made_for_inference_have_factors_too():
    with torch.inference_mode():
        weight = normal(0, 16, 8)
        assert output_factors(weight, 2).shape == (2, 4, 4)


def test_factors_of_a_parameter_need_no_gradient():
    assert not output_factors(torch.nn.Parameter(normal(0, 16, 8)), 2).requires_grad
