"""Numbers for the objects that operations of a captured step belong to.

An operation of PyTorch takes tensors and numbers only. The number of an object stays the same for
the conversations that use its buffers again, so that nothing is captured anew.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

_numbers = itertools.count()
_owners: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def number_for(owner: Any, before: Any = None) -> int:
    """Return the number by which `owner_of` finds an object: that of `before`, or a new one."""
    number: int = next(_numbers) if before is None else before.number
    _owners[number] = owner
    return number


def owner_of(number: int) -> Any:
    """Return the object of a number."""
    return _owners[number]
