"""A component: one named part that an installed plugin offers, and how to build it."""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    KvpolicyError,
    shown,
    suggest,
    text_of,
    told,
)
from kvpolicy.kinds import KINDS, PARTS, SETTINGS
from kvpolicy.pipeline.title import Title


class Unset(enum.Enum):
    """Marks an option without a fixed default."""

    REQUIRED = "required"
    COMPUTED = "computed"


@attrs.frozen(kw_only=True)
class Component:
    """One named part, or a recipe of parts, that an installed plugin offers.

    >>> from kvpolicy.discovery.registry import find
    >>> part = find("smoother", "mean")
    >>> print(part, "->", part.build())
    smoother 'mean' of plugin 'core' (kvpolicy 0.1.0) -> MeanSmoother()
    """

    kind: str
    name: str
    plugin: str
    distribution: str
    version: str
    offer: Callable[..., Any] | Mapping[str, Any] = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"{self.title} of plugin {self.source}"

    @property
    def title(self) -> str:
        """The kind and the name, for example "scorer 'restkv'"."""
        return f"{KINDS[self.kind].title} {self.name!r}"

    def title_of(self, part: object) -> Title:
        """Return the title of a part that this component built."""
        return Title(
            kind=KINDS[self.kind].title,
            type=type(part),
            name=self.name,
            plugin=self.plugin,
            distribution=self.distribution,
            version=self.version,
        )

    @property
    def source(self) -> str:
        """The plugin and its distribution, for example "'restkv' (kvpolicy 0.1.0)"."""
        return f"{self.plugin!r} ({self.distribution} {self.version})"

    @property
    def options(self) -> dict[str, Any]:
        """The options and their defaults; for a recipe, the arguments that it sets.

        >>> from kvpolicy.discovery.registry import find
        >>> find("scorer", "snapkv").options
        {'window': 32}
        """
        if isinstance(self.offer, Mapping):
            return copy.deepcopy(dict(self.offer))
        parameters = inspect.signature(self.offer).parameters.values()
        return {each.name: _default(each) for each in parameters if each.kind != each.VAR_KEYWORD}

    def build(self, **options: object) -> Any:
        """Build the part. For a recipe, return its arguments of `compose` changed by `options`.

        Raises InvalidOptionError for an unknown or missing option, and InvalidValueError for a
        refused value. Raises InvalidComponentError if the object lacks part of the interface, and
        ComponentFailedError if building fails otherwise.
        """
        if isinstance(self.offer, Mapping):
            _check_names(self.title, options, (*PARTS, *SETTINGS))
            return self.options | options
        self._check_options(options, self.offer)
        try:
            return self._checked(self.offer(**options))
        except InvalidValueError as error:
            raise InvalidValueError(_sentence(f"{self.title}: {error}")) from error
        except KvpolicyError:
            raise
        except (TypeError, ValueError) as error:
            complaint = _complaint(error, options)
            raise InvalidValueError(_sentence(f"{self.title}: {complaint}")) from error
        except (Exception, SystemExit) as error:
            raise ComponentFailedError(f"{self} could not be built: {told(error)}") from error

    def _check_options(self, options: Mapping[str, object], offer: Callable[..., Any]) -> None:
        known = self.options
        if not _takes_any(offer):
            _check_names(self.title, options, known)
        for name, default in known.items():
            if default is Unset.REQUIRED and name not in options:
                raise InvalidOptionError(
                    f"{self.title} needs the option {name!r}. "
                    f"Give {{'name': {self.name!r}, {name!r}: ...}}."
                )

    def _checked(self, built: Any) -> Any:
        kind = KINDS[self.kind]
        if isinstance(built, type):
            raise InvalidComponentError(
                f"{self} built the class {built.__name__}; it must build an object."
            )
        if not isinstance(built, kind.interface):
            lacks = ", ".join(name for name in kind.verbs if not hasattr(built, name))
            raise InvalidComponentError(
                f"{self} built a {type(built).__name__}, which lacks {lacks} of "
                f"{kind.interface.__module__}.{kind.interface.__name__}."
            )
        return built


def _check_names(title: str, options: Iterable[str], known: Iterable[str]) -> None:
    known = tuple(known)
    for option in options:
        if option not in known:
            raise InvalidOptionError(
                f"{title} has no option {shown(option)}.{suggest(option, known)} "
                f"It has: {', '.join(known) or 'none'}."
            )


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return Unset.REQUIRED
    return Unset.COMPUTED if parameter.default is attrs.NOTHING else parameter.default


def _takes_any(offer: Callable[..., Any]) -> bool:
    parameters = inspect.signature(offer).parameters.values()
    return any(each.kind == each.VAR_KEYWORD for each in parameters)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _complaint(error: Exception, options: Mapping[str, object]) -> str:
    """Return a validator's message. If it names no option, add the options that were given."""
    # Some validators of attrs raise with the field and the value as further arguments.
    complaint = text_of(error.args[0] if error.args else error) or type(error).__name__
    if any(repr(option) in complaint for option in options):
        return complaint
    given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
    return f"{complaint} (given {given or 'no options'})"
