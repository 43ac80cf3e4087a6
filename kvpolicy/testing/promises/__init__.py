"""What each kind of component promises; a module for each stage."""

from __future__ import annotations

from kvpolicy.testing.promises.catalogue import PROMISES, check
from kvpolicy.testing.promises.promise import Promise

__all__ = ["PROMISES", "Promise", "check"]
