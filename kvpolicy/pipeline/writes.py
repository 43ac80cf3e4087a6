"""Notices that a part wrote into what it was shown, by the version counters that tensors have.

A counter rises with every write by PyTorch, through any view, and costs nothing to look at. Not
seen are writes through `.data` or NumPy, and any within `torch.inference_mode`, whose tensors have
no counter: the contract of `kvpolicy.testing` compares contents and sees those too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.selection import Selection

Versions: TypeAlias = list[tuple[str, int]]

_OF_OBSERVATION = ("queries", "keys", "values", "positions", "state", "output_weight")
_OF_SELECTION = tuple(attrs.fields_dict(Selection))


def versions(inputs: Sequence[object]) -> Versions:
    """Return the name and version of every tensor among `inputs`."""
    return [
        (name, 0 if tensor.is_inference() else tensor._version) for name, tensor in _tensors(inputs)
    ]


def written(before: Versions, inputs: Sequence[object]) -> list[str]:
    """Return the names of the tensors that were written to since.

    >>> import torch
    >>> scores = torch.zeros(2)
    >>> before = versions([scores])
    >>> scores[0] = 1
    >>> written(before, [scores])
    ['its input']
    """
    pairs = zip(before, versions(inputs), strict=True)
    return list(dict.fromkeys(name for (name, old), (_, new) in pairs if old != new))


def _tensors(inputs: Sequence[object]) -> Iterator[tuple[str, Tensor]]:
    for each in inputs:
        if isinstance(each, Tensor):
            yield "its input", each
        elif isinstance(each, Observation):
            yield from _fields(each, _OF_OBSERVATION)
        elif isinstance(each, Selection):
            yield from _fields(each, _OF_SELECTION)


def _fields(owner: Any, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        tensor = getattr(owner, name)
        if tensor is not None:
            yield name, tensor
