"""The weight with which a projection computes that is quantised or has adapters.

It is what the projection makes of unit vectors. A weight that is computed again and has the same
numbers is the same tensor: what was computed of it, such as its factors, stays known.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.huggingface.model.devices import device_of, weights_present

_known: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, tuple[Any, Tensor]]] = (
    weakref.WeakKeyDictionary()
)
"""By projection and dtype: the mark of a weight, and the weight."""
_OF_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
"""Attributes by which layers of PEFT say what they add."""


def effective_weight(
    projection: nn.Module, dtype: torch.dtype
) -> Float[Tensor, "M columns"] | None:
    """Return the weight with which a projection computes; None if its size is not known.

    It is kept as long as the projection exists. On a CPU it is computed at each use, and compared.
    On a GPU to compare would be a wait: there it is computed again where adapters, or the place or
    version of a tensor, have changed, and `check_effective` compares when a cache is made.
    """
    remembered, mark = _known.setdefault(projection, {}), _mark(projection)
    known, on_cpu = remembered.get(dtype), _is_on_cpu(projection)
    if known is not None and known[0] == mark and not on_cpu:
        return known[1]
    found = _computed(projection, dtype)
    if found is None:
        return None
    if known is not None and on_cpu and torch.equal(known[1], found):
        found = known[1]
    remembered[dtype] = mark, found
    return found


def check_effective(projection: nn.Module) -> None:
    """Forget the weights of a projection on a GPU that computes otherwise now. Waits for it."""
    if _is_on_cpu(projection):
        return
    for dtype, (_, weight) in list(_known.get(projection, {}).items()):
        found = _computed(projection, dtype)
        if found is None or not torch.equal(weight, found):
            del _known[projection][dtype]


def _is_on_cpu(projection: nn.Module) -> bool:
    device = device_of(projection)
    return device is None or device.type == "cpu"


def _mark(projection: nn.Module) -> tuple[object, ...]:
    """Return what changes with the weight, unless someone writes through `.data`."""
    tensors = (*projection.parameters(), *projection.buffers())
    return (
        *((id(each), 0 if each.is_inference() else each._version) for each in tensors),
        *(
            str(getattr(module, name, None))
            for module in projection.modules()
            for name in _OF_ADAPTERS
        ),
    )


def columns_of(projection: nn.Module) -> int | None:
    """Return how many inputs a projection takes; None if nothing says so."""
    for each in (projection, getattr(projection, "base_layer", None)):
        for name in ("in_features", "nx"):
            if isinstance(count := getattr(each, name, None), int):
                return count
    return None


@torch.no_grad()
def _computed(projection: nn.Module, dtype: torch.dtype) -> Float[Tensor, "M columns"] | None:
    columns = columns_of(projection)
    if columns is None:
        return None
    device = device_of(projection)
    units = torch.eye(columns, dtype=dtype, device=device)
    with as_in_inference(projection):
        outputs: Tensor = projection.forward(units)
        bias: Tensor = projection.forward(torch.zeros_like(units[:1]))
    return (outputs - bias).mT.contiguous()


@contextmanager
def as_in_inference(projection: nn.Module) -> Iterator[None]:
    """Have no dropout, and the weights where the projection computes, until the block is left."""
    training = [module for module in projection.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with weights_present(projection):
            yield
    finally:
        for module in training:
            module.training = True
