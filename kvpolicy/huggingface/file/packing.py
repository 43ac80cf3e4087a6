"""Parts of a layer as plain JSON data and named tensors, and back.

The data name no class. What an attrs class is made of is read from the annotations of its fields,
of the fields that have `SAVED`. A file can neither name code to run nor leave out or add a field.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import torch
from torch import Tensor

from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.saved import saved_fields
from kvpolicy.errors import CacheFileError

Tensors = MutableMapping[str, Tensor]
"""The tensors of a file by name; those that are read are taken out."""


def packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return plain data for `value`; tensors are added to `tensors` under names that begin so.

    Raises CacheFileError for a value that is no tensor, no plain data and no part of a layer.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Rows):
        value = value.view
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return [packed(each, tensors, f"{name}.{at}") for at, each in enumerate(value)]
    if not attrs.has(type(value)):
        raise CacheFileError(f"{name} is a {type(value).__name__}, which cannot be saved.")
    return {
        field.name: packed(getattr(value, field.name), tensors, f"{name}.{field.name}")
        for field in saved_fields(type(value))
    }


def unpacked(data: Any, expected: Any, tensors: Tensors, device: torch.device) -> Any:
    """Return the value of type `expected` that `packed` was given, with its tensors on `device`.

    A tensor is taken out of `tensors`, so that no two values share one.

    Raises KeyError, TypeError or ValueError for data that `packed` cannot have made.
    """
    if _is_optional(expected):
        if data is None:
            return None
        expected = next(each for each in get_args(expected) if each is not type(None))
    if expected is Rows:
        rows = taken(data, tensors, device)
        if rows.ndim != 4:
            raise TypeError(f"rows have the shape {tuple(rows.shape)}")
        return Rows(rows)
    if get_origin(expected) is list:
        (item,) = get_args(expected)
        return [unpacked(each, item, tensors, device) for each in _of_type(data, list)]
    if expected in (int, float, str, bool):
        return _of_type(data, expected)
    if attrs.has(expected):
        return _built(data, expected, tensors, device)
    found = taken(data, tensors, device)
    if not isinstance(found, expected):
        raise TypeError(f"a tensor of {found.dtype} {tuple(found.shape)} is no {expected}")
    return found


def _built(data: Any, kind: type[Any], tensors: Tensors, device: torch.device) -> Any:
    fields, hints = saved_fields(kind), get_type_hints(kind)
    if set(_of_type(data, dict)) != {field.name for field in fields}:
        raise TypeError(f"{kind.__name__} with {', '.join(map(str, data))}")
    values: dict[str, Any] = {
        str(field.alias): unpacked(data[field.name], hints[field.name], tensors, device)
        for field in fields
    }
    return kind(**values)


def taken(data: Any, tensors: Tensors, device: torch.device) -> Tensor:
    """Take the tensor that data name out of `tensors`.

    Raises KeyError, TypeError or ValueError if they name none that is left.
    """
    ((kind, name),) = _of_type(data, dict).items()
    if kind != "tensor" or name not in tensors:
        raise KeyError(f"no tensor {name} is left")
    return tensors.pop(name).to(device)


def _of_type(data: Any, kind: type[Any]) -> Any:
    if type(data) is not kind:
        raise TypeError(f"a {type(data).__name__} in place of a {kind.__name__}")
    return data


def _is_optional(expected: Any) -> bool:
    return type(None) in get_args(expected)
