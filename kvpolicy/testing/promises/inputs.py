"""Holds a part to leaving its inputs as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from kvpolicy.observation.observation import Observation


@contextmanager
def unchanged(*inputs: Tensor | Observation) -> Iterator[None]:
    """Fail if a tensor in `inputs` was written to."""
    before = {name: tensor.clone() for name, tensor in _tensors(inputs)}
    yield
    for name, tensor in _tensors(inputs):
        assert torch.equal(before[name], tensor), f"its input {name} was written to"


def _tensors(inputs: tuple[Tensor | Observation, ...]) -> Iterator[tuple[str, Tensor]]:
    for number, each in enumerate(inputs):
        if isinstance(each, Tensor):
            yield str(number), each
            continue
        for name in attrs.fields_dict(Observation):
            if isinstance(value := getattr(each, name), Tensor):
                yield name, value
