"""The contract of a plugin: one test that checks every promise of every component."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kvpolicy.discovery.component import Component
from kvpolicy.discovery.registry import broken, installed
from kvpolicy.errors import InvalidComponentError, UnknownComponentError, suggest
from kvpolicy.testing.promises import PROMISES, Promise


def contract(
    *, plugin: str, options: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[..., None]:
    """Return a pytest test of every component of `plugin`, with one case for each promise.

    `options` has the options of the components that need some, by the component's name.
    Raises UnknownComponentError if no such plugin is installed, and InvalidComponentError if it
    cannot be used.
    """
    given = options or {}
    cases = [
        pytest.param(component, promise, id=f"{component.kind}-{component.name}-{promise.name}")
        for component in _components(plugin)
        for promise in PROMISES[component.kind]
    ]

    @pytest.mark.parametrize(("component", "promise"), cases)
    def test_contract(component: Component, promise: Promise) -> None:
        promise(component.build(**given.get(component.name, {})))

    return test_contract


def _components(plugin: str) -> list[Component]:
    for faulty in broken():
        if faulty.name == plugin:
            raise InvalidComponentError(f"plugin {faulty}")
    components = installed()
    if mine := [component for component in components if component.plugin == plugin]:
        return mine
    plugins = sorted({component.plugin for component in components})
    raise UnknownComponentError(
        f"no plugin named {plugin!r} is installed.{suggest(plugin, plugins)} "
        f"Installed: {', '.join(plugins)}."
    )
