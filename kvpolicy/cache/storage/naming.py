"""From what a user says of storage to the object: a name, a mapping or the object itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from kvpolicy.cache.storage.offloaded import Offloaded
from kvpolicy.cache.storage.protocol import Storage
from kvpolicy.cache.storage.quantized import Quantized
from kvpolicy.errors import (
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    UnknownComponentError,
    shown,
    suggest,
)

StorageOption: TypeAlias = str | Mapping[str, Any] | Storage
"""A name, a mapping of `name` and options, or the object itself."""

STORAGES: Mapping[str, type[Quantized] | type[Offloaded]] = {
    "quantized": Quantized,
    "offloaded": Offloaded,
}


def storage_of(storage: StorageOption | None, bits: int | None = None) -> Storage | None:
    """Return the storage that is meant; `bits` may be said beside a name.

    >>> storage_of("quantized", bits=4)
    Quantized(bits=4, backend='minmax', residual=32, group=64)

    Raises UnknownComponentError, InvalidOptionError, InvalidValueError or InvalidComponentError.
    """
    if isinstance(storage, str):
        storage = {"name": storage}
    if bits is not None:
        storage = _with_bits(storage, bits)
    if storage is None:
        return None
    if not isinstance(storage, Mapping):
        return _checked(storage)
    options = dict(storage)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(
            "storage must be a name, an object, or a mapping with a 'name' such as "
            f"{{'name': 'quantized', 'bits': 4}}, not {shown(storage)}."
        )
    if name not in STORAGES:
        raise UnknownComponentError(
            f"no storage named {shown(name)}.{suggest(name, STORAGES)} "
            f"There are: {', '.join(STORAGES)}; None leaves what is kept as it is."
        )
    return _built(name, options)


def described(storage: Storage | None) -> dict[str, Any] | None:
    """Return plain data from which `storage_of` makes the same.

    Raises InvalidComponentError for a storage that has no name.
    """
    if storage is None:
        return None
    for name, kind in STORAGES.items():
        if type(storage) is kind:
            return {"name": name, **attrs.asdict(storage)}
    raise InvalidComponentError(
        f"storage {shown(storage)} has no name, so no file can say what reads it."
    )


def _with_bits(storage: Any, bits: int) -> Mapping[str, Any]:
    if not isinstance(storage, Mapping):
        raise InvalidOptionError(
            f"bits={shown(bits)} goes with storage='quantized', not with storage={shown(storage)}."
        )
    if "bits" in storage:
        raise InvalidOptionError(
            f"bits={shown(bits)} is given beside {shown(storage)}: say it once."
        )
    return {**storage, "bits": bits}


def _built(name: str, options: Mapping[str, Any]) -> Storage:
    known = attrs.fields_dict(STORAGES[name])
    for option in options:
        if option not in known:
            has = f"It has: {', '.join(known)}." if known else "It has none."
            raise InvalidOptionError(
                f"storage {name!r} has no option {shown(option)}.{suggest(option, known)} {has}"
            )
    try:
        return STORAGES[name](**options)
    except InvalidValueError as error:
        raise InvalidValueError(f"storage {name!r}: {error}.") from error


def _checked(storage: Any) -> Storage:
    if isinstance(storage, type) or not isinstance(storage, Storage):
        raise InvalidComponentError(
            "storage must be a name, a mapping or an object that can store, extend, restored and "
            f"prefetch, not {shown(storage)}."
        )
    return storage
