"""Marks on the keys that a cache hands out, by which an attention call finds their layer."""

from __future__ import annotations

import weakref

from torch import Tensor

from kvpolicy.huggingface.attention.listener import Listener

MARK = "_kvpolicy_layer"
"""The attribute of marked keys."""


def mark(keys: Tensor, layer: Listener) -> Tensor:
    """Mark keys so that the attention call that receives them finds their layer."""
    # A weak reference: autograd graphs and debuggers keep the tensor longer than the call.
    setattr(keys, MARK, weakref.ref(layer))
    return keys


def listener_of(keys: Tensor) -> Listener | None:
    """Return the layer that handed these keys out; None for keys without a mark."""
    reference = getattr(keys, MARK, None)
    return None if reference is None else reference()
