"""What a cache layer holds as plain JSON data and named tensors, and back; never as code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.memory.contents import Contents, Rows
from kvpolicy.cache.memory.ragged import Prefix
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.storage import OffloadedContents, QuantizedContents, Recent
from kvpolicy.errors import CacheFileError

_OPTIONAL = (type(None), Tensor)
_FIELDS: Mapping[type, Mapping[str, type | tuple[type, ...]]] = {
    Contents: {
        "keys": Rows,
        "values": Rows,
        "slots": Slots,
        "state": _OPTIONAL,
        "prefix": (type(None), Prefix),
    },
    Prefix: {
        "keys": Tensor,
        "values": Tensor,
        "positions": Tensor,
        "lengths": Tensor,
        "state": _OPTIONAL,
    },
    OffloadedContents: {"layout": Contents},
    QuantizedContents: {"layout": Contents, "recent": Recent},
    Recent: {"keys": Tensor, "values": Tensor},
    Rows: {"rows": Tensor},
    Schedule: {
        "_every": (type(None), int),
        "_window": (type(None), int),
        "_queries": _OPTIONAL,
        "_decoded": int,
    },
    Slots: {
        "batch": int,
        "heads": int,
        "held": int,
        "lengths": list,
        "seen": list,
        "moved": int,
        "_known": Tensor,
    },
}
"""The only classes that a file can name, and what their fields hold; lists are of int."""
_KNOWN: Mapping[str, type] = {each.__name__: each for each in _FIELDS}


def packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return plain data for `value`; its tensors are added to `tensors` under names that begin so.

    Raises CacheFileError for what is no tensor, no plain data and no part of a layer.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": None}
    if isinstance(value, list | tuple):
        return {"list": [packed(each, tensors, f"{name}.{at}") for at, each in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [[key, packed(each, tensors, f"{name}.{key}")] for key, each in value.items()]
        return {"dict": pairs}
    kind = type(value).__name__
    if _KNOWN.get(kind) is not type(value):
        raise CacheFileError(f"{name} is a {kind}, which cannot be saved.")
    return {kind: packed(fields_of(value), tensors, name)["dict"]}


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a part of a layer; of rows, those in use."""
    if isinstance(value, Rows):
        return {"rows": value.view}
    return {name: getattr(value, name) for name in _FIELDS[type(value)]}


def unpacked(data: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Return what `packed` was given, on `device`; prefix lengths stay on the CPU.

    Raises KeyError, TypeError, ValueError or AttributeError for data that it cannot have made.
    """
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return tensors[content].to(device)
    if kind == "dtype":
        found = getattr(torch, content)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{content} is no dtype")
        return found
    if kind == "device":
        return device
    if kind == "list":
        return [unpacked(each, tensors, device) for each in content]
    fields = {key: unpacked(each, tensors, device) for key, each in content}
    return fields if kind == "dict" else _built(_KNOWN[kind], fields)


def _built(kind: Any, fields: dict[str, Any]) -> Any:
    _check_fields(kind, fields)
    if kind is Rows:
        return Rows(fields["rows"])
    if kind is Prefix:
        fields["lengths"] = fields["lengths"].cpu()
    if attrs.has(kind):
        return kind(**fields)
    made = kind.__new__(kind)
    vars(made).update(fields)
    return made


def _check_fields(kind: type, fields: dict[str, Any]) -> None:
    """Raise TypeError unless a part has its fields, each of its type."""
    expected = _FIELDS[kind]
    if set(fields) != set(expected):
        raise TypeError(f"{kind.__name__} with {', '.join(map(str, fields))}")
    for name, value in fields.items():
        fits = isinstance(value, expected[name]) and not isinstance(value, bool)
        if isinstance(value, list):
            fits = fits and all(type(each) is int for each in value)
        if not fits:
            raise TypeError(f"{kind.__name__}.{name} is a {type(value).__name__}")
