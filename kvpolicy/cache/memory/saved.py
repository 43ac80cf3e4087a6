"""Which fields of a class go into a file: those that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

SAVED: Mapping[str, bool] = {"kvpolicy_saved": True}
"""The metadata of attrs fields that go into the files that `kvpolicy.save` writes."""


def saved_fields(kind: type[attrs.AttrsInstance]) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of an attrs class that go into files.

    >>> from kvpolicy.cache.memory.contents import Contents
    >>> [field.name for field in saved_fields(Contents)]
    ['keys', 'values', 'slots', 'state', 'ragged', 'remainder']
    """
    return tuple(field for field in attrs.fields(kind) if "kvpolicy_saved" in field.metadata)
