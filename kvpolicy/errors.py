"""Errors raised on purpose: what was wrong, with which value, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 300
"""Characters of a value that a message shows."""


class KvpolicyError(Exception):
    """Base of every error that kvpolicy raises on purpose."""


class BrokenPluginWarning(UserWarning):
    """An installed plugin cannot be used; the others can."""


class PrefillFallbackWarning(UserWarning):
    """Sparse prefill is not compiled here: the same numbers, at the cost of dense attention."""


class ResultsCutWarning(UserWarning):
    """A file of results ended in the middle of a row, which will be run again."""


class NotExchangeableWarning(UserWarning):
    """Prompts of a calibration differ from one another, or from those to come: no guarantee."""


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


class MissingPackageError(KvpolicyError, ImportError):
    """What was asked for needs a package that is not installed."""


class CacheStateError(KvpolicyError, RuntimeError):
    """A cache was used in a state in which it cannot answer exactly."""


class CacheFileError(KvpolicyError, ValueError):
    """A file does not hold a cache that can be gone on with, or a cache cannot be put in one."""


class ResultsError(KvpolicyError, ValueError):
    """A file of results cannot be read, written or gone on with."""


class DataError(KvpolicyError, ValueError):
    """Data to evaluate on are missing, or are not what they should be."""


def shown(value: object) -> str:
    """Return a value as messages show it: its repr, cut where it is long; never raises.

    >>> shown("x" * 1000)[-4:]
    'xxx…'
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an int of 5,000 digits has none, nor has a hostile object
        text = f"<{type(value).__name__} that has no repr>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def told(error: BaseException) -> str:
    """Return the type and message of what was raised, in a line; never raises.

    >>> told(KeyError("where"))
    "KeyError: 'where'"
    """
    return f"{type(error).__name__}: {text_of(error)}"


def text_of(value: object) -> str:
    """Return `str(value)`, whoever it is of; never raises."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whoever raises may be hostile as well
        return "it does not say why"


def suggest(name: object, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the nearest of `known`, or nothing.

    >>> suggest("retskv", ["restkv", "snapkv"])
    " Did you mean 'restkv'?"
    """
    if not isinstance(name, str):
        return ""
    near = difflib.get_close_matches(name[:LONGEST], list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
