"""Errors raised on purpose: what was wrong, with which value, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KvpolicyError(Exception):
    """Base of every error that kvpolicy raises on purpose."""


class BrokenPluginWarning(UserWarning):
    """An installed plugin cannot be used; the others can."""


class UnknownComponentError(KvpolicyError, LookupError):
    """No installed plugin offers a component of that kind under that name."""


class DuplicateComponentError(KvpolicyError, ValueError):
    """Two plugins offer a component of one kind under one name."""


class InvalidComponentError(KvpolicyError, TypeError):
    """What a plugin offers, or what its part returns, does not meet the interface of its kind."""


class InvalidOptionError(KvpolicyError, TypeError):
    """A component or a policy was given an option that it does not have."""


class InvalidValueError(KvpolicyError, ValueError):
    """An option that exists was given a value that it cannot take."""


class ComponentFailedError(KvpolicyError, RuntimeError):
    """A plugin's part raised while it was at work; the cause is chained."""


class UnsupportedModelError(KvpolicyError, TypeError):
    """A model, or a way of using it, that cannot be served exactly."""


class CacheStateError(KvpolicyError, RuntimeError):
    """A cache was used in a state in which it cannot answer exactly."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the nearest of `known`, or nothing.

    >>> suggest("retskv", ["restkv", "snapkv"])
    " Did you mean 'restkv'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
