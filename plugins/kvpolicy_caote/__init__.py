"""CAOTE: the error that evicting a position causes in a head's attention output.

Goel et al., https://arxiv.org/abs/2504.14051
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpolicy import hookimpl


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the recipe 'caote': scorer `restkv` in value space, with the window's values in o."""
    error = {"name": "restkv", "projection": "value", "o_includes_window": True}
    return {"caote": {"scorer": error}}
