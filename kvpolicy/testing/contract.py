"""The contract of a plugin: one test that checks every promise of every component."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kvpolicy.discovery.component import Component
from kvpolicy.discovery.registry import broken, installed
from kvpolicy.errors import (
    InvalidComponentError,
    InvalidValueError,
    UnknownComponentError,
    suggest,
)
from kvpolicy.testing.promises import PROMISES, Promise

PROFILE = "KVPOLICY_CONTRACT"
"""The environment variable that names the profile."""

SHARES = {"quick": 0.1, "full": 1.0}
"""The share of its examples that each promise is tried on, by profile."""


def contract(
    *, plugin: str, options: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[..., None]:
    """Return a pytest test of every component of `plugin`, with one case for each promise.

    `options` has the options of the components that need some, by the component's name.

    With the environment variable KVPOLICY_CONTRACT=quick each promise is tried on a tenth of its
    examples: seconds instead of a minute, while a plugin is being written.

    Raises UnknownComponentError if no such plugin is installed, and InvalidComponentError if it
    cannot be used.
    """
    given, share = options or {}, share_of_examples()
    cases = [
        pytest.param(component, promise, id=f"{component.kind}-{component.name}-{promise.name}")
        for component in _components(plugin)
        for promise in PROMISES[component.kind]
    ]

    @pytest.mark.parametrize(("component", "promise"), cases)
    def test_contract(component: Component, promise: Promise) -> None:
        part = component.build(**given.get(component.name, {}))
        promise.quickened(share)(part)

    return test_contract


def share_of_examples() -> float:
    """Return the share of its examples that each promise is tried on.

    Raises InvalidValueError for another profile than quick and full.
    """
    profile = os.environ.get(PROFILE, "full")
    if profile not in SHARES:
        raise InvalidValueError(f"{PROFILE} must be {' or '.join(SHARES)}, but is {profile!r}.")
    return SHARES[profile]


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
