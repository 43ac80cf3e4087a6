"""Notes: what a scorer knows of each row on the host, beside its running state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Note: TypeAlias = tuple[int, ...]
"""What is noted of one row: numbers that need not be read from a device."""

Notes: TypeAlias = Sequence[Note] | None
"""A note for each row; None if nothing is known."""
