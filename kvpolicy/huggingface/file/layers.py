"""The layers of a cache as plain data and tensors, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import CacheFileError, shown
from kvpolicy.huggingface.file.packing import Tensors, packed, taken, unpacked
from kvpolicy.huggingface.hybrid import HybridLayer
from kvpolicy.huggingface.layer import PolicyLayer

_FIELDS = {"index", "seen", "schedule", "contents", "stored"}
_LINEAR = "linear"
"""The field of what a layer with attention and a linear state in one has beside those."""
_SET_LATER = {"dtype", "device", "keys", "values"}
"""Attributes that a layer of transformers gets with its first tokens."""
_LATER = (Tensor, torch.dtype, torch.device, int)
"""The types of such attributes."""
_OF_THE_MODEL = ("sliding_window", "number_of_states")
"""Attributes of layers of transformers that the model fixes."""


def kind_of(layer: Any) -> str:
    """Return the name of a layer's kind; static rows do not make another kind of layer."""
    kinds = (each for each in (HybridLayer, PolicyLayer) if isinstance(layer, each))
    return next(kinds, type(layer)).__name__


def packed_layer(layer: Any, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Return plain data for one layer; tensors are added to `tensors` under names that begin so.

    Raises CacheFileError for a layer that holds anything else.
    """
    if isinstance(layer, PolicyLayer):
        fields: dict[str, Any] = {
            "index": layer.index,
            "seen": layer.seen,
            "schedule": layer.schedule,
            "contents": layer.memory.contents,
            "stored": layer.memory.stored,
        }
        found = {each: packed(value, tensors, f"{name}.{each}") for each, value in fields.items()}
        if isinstance(layer, HybridLayer):
            found[_LINEAR] = _all_plain(_linear(layer), tensors, f"{name}.{_LINEAR}")
        return found
    return _all_plain(_own(layer), tensors, name)


def restore_layer(layer: Any, data: Any, tensors: Tensors, device: torch.device) -> None:
    """Give an empty layer what `packed_layer` returned.

    Raises CacheFileError, KeyError, TypeError or ValueError for data that do not fit the layer.
    """
    if isinstance(layer, PolicyLayer):
        _restore_policy_layer(layer, data, tensors, device)
    else:
        _restore_other(layer, data, tensors, device)


def _restore_policy_layer(
    layer: PolicyLayer, data: Any, tensors: Tensors, device: torch.device
) -> None:
    def read(name: str, expected: Any) -> Any:
        return unpacked(data[name], expected, tensors, device)

    fields = _FIELDS | {_LINEAR} if isinstance(layer, HybridLayer) else _FIELDS
    if not isinstance(data, dict) or set(data) != fields:
        raise TypeError(f"a layer has {', '.join(sorted(fields))}")
    if read("index", int) != layer.index:
        raise ValueError(f"layer {layer.index} is saved as layer {data['index']}")
    layer.seen = read("seen", int)
    schedule = read("schedule", Schedule)
    if (schedule.every, schedule.window) != (layer.schedule.every, layer.schedule.window):
        raise ValueError("its schedule is that of another policy")
    layer.schedule = schedule
    layer.memory.contents = read("contents", Contents | None)
    storage = layer.memory.storage
    if storage is None and data["stored"] is not None:
        raise ValueError("it is stored, and the file names no storage")
    if storage is not None:
        layer.memory.stored = read("stored", storage.form | None)
    if isinstance(layer, HybridLayer):
        _restore_attributes(layer, _linear(layer), data[_LINEAR], tensors, device)


def _restore_other(layer: Any, data: Any, tensors: Tensors, device: torch.device) -> None:
    fresh = _own(layer)
    _restore_attributes(layer, fresh, data, tensors, device)
    if fresh.get("is_initialized") is False and layer.is_initialized == (layer.keys is None):
        raise ValueError("it has keys, and is empty")
    _initialize(layer)


def _restore_attributes(
    layer: Any, fresh: dict[str, Any], data: Any, tensors: Tensors, device: torch.device
) -> None:
    """Set the attributes of an empty layer, which are `fresh`, to what a file says."""
    if not isinstance(data, dict) or set(data) - _SET_LATER != set(fresh) - _SET_LATER:
        raise CacheFileError(
            f"a {type(layer).__name__} was saved with {', '.join(map(str, data or ()))}, and has "
            f"{', '.join(fresh)}: another version of transformers wrote the file."
        )
    for name, value in data.items():
        found = _value(value, tensors, device)
        _check_attribute(name, found, fresh.get(name))
        setattr(layer, name, found)


def _check_attribute(name: str, found: Any, fresh: Any) -> None:
    """Raise TypeError or ValueError for what an attribute of a layer of transformers cannot be.

    `fresh` is what it is in an empty layer; None there gets its type with the first tokens.
    """
    if name in _OF_THE_MODEL and found != fresh:
        raise ValueError(f"{name} of a layer is {found}, and {fresh} in this model")
    if isinstance(fresh, dict):
        if not isinstance(found, dict) or found.keys() != fresh.keys():
            raise TypeError(f"{name} of a layer is {shown(found)}")
        for key, each in fresh.items():
            _check_attribute(f"{name}[{key}]", found[key], each)
    elif fresh is None:
        if not (found is None or type(found) in _LATER):
            raise TypeError(f"{name} of a layer is a {type(found).__name__}")
    elif type(found) is not type(fresh) or (type(found) is int and found < 0):
        raise TypeError(f"{name} of a layer is {shown(found)}")


def _initialize(layer: Any) -> None:
    """Let a layer of transformers bring to its device what it keeps for itself."""
    keys = getattr(layer, "keys", None)
    if keys is not None and hasattr(layer, "lazy_initialization"):
        held = {name: getattr(layer, name) for name in ("keys", "values")}
        layer.lazy_initialization(keys, layer.values)
        vars(layer).update(held)


def _own(layer: Any) -> dict[str, Any]:
    """Return the public attributes of a layer of transformers."""
    return {name: value for name, value in vars(layer).items() if not name.startswith("_")}


def _linear(layer: HybridLayer) -> dict[str, Any]:
    """Return those attributes that a layer has as a linear layer of transformers."""
    own = _own(LinearAttentionLayer(number_of_states=layer.number_of_states))
    return {name: getattr(layer, name) for name in own}


def _all_plain(values: dict[str, Any], tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Return plain data for attributes of a layer of transformers."""
    return {each: _plain(value, tensors, f"{name}.{each}") for each, value in values.items()}


def _plain(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return plain data for an attribute of a layer of transformers."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": None}
    if isinstance(value, dict):
        pairs = [[key, _plain(each, tensors, f"{name}.{key}")] for key, each in value.items()]
        return {"dict": pairs}
    return packed(value, tensors, name)


def _value(data: Any, tensors: Tensors, device: torch.device) -> Any:
    """Return the attribute that `_plain` was given."""
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return taken(data, tensors, device)
    if kind == "dtype":
        found = getattr(torch, content, None)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{content} is no dtype")
        return found
    if kind == "device":
        return device
    if kind == "dict":
        return {key: _value(each, tensors, device) for key, each in content}
    raise TypeError(f"an attribute of kind {kind}")
