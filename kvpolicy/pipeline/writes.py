"""Finds out whether a part wrote into its inputs, by the version counters of tensors.

A counter rises with every write by PyTorch, through any view, and reading it costs nothing. It does
not see writes through `.data` or NumPy, and tensors made in `torch.inference_mode` have no counter.
The contract of `kvpolicy.testing` compares contents and finds those writes too.
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
    """Return the names of the tensors that were written to after `versions` returned `before`.

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
