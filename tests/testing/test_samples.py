"""A sample observation is made of its arguments."""

import attrs
import torch

from kvpolicy import testing


def test_a_sample_is_made_of_its_arguments():
    one, same = testing.observation(seed=1), testing.observation(seed=1)
    assert torch.equal(one.keys, same.keys)
    assert not torch.equal(one.keys, testing.observation(seed=2).keys)
    assert testing.observation(layer=3, num_layers=4).layer == 3
    assert attrs.fields_dict(type(one)).keys() >= {"queries", "keys", "values"}
