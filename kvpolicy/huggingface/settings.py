"""The settings of a call of `generate`, wherever they are given."""

from __future__ import annotations

from typing import Any


def setting(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Return a setting as `generate` finds it: given, in generation_config, or in the model's."""
    config = args[1] if len(args) > 1 else kwargs.get("generation_config")
    sources = (kwargs.get(name), *(getattr(each, name, None) for each in (config, _own(model))))
    return next((value for value in sources if value is not None), None)


def _own(model: Any) -> Any:
    return getattr(model, "generation_config", None)
