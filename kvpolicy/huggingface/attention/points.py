"""Where a model looks its attention and mask functions up, and how functions are wrapped there.

transformers looks a named implementation up in a registry, and takes eager attention from the
globals of the file that defines the model. A function is wrapped in that place: the name in the
model's config stays what it is, for all code that reads it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
"""Takes the function in use, and returns one that is to be called in its place."""

_EAGER = "eager_attention_forward"
_lock = threading.RLock()


class Place(Protocol):
    """A place in which a function is looked up at every call."""

    def read(self) -> Function | None:
        """Return the function that is there; None if there is none any more."""

    def write(self, function: Function) -> None:
        """Put another function there."""


class Registered:
    """A name in one of transformers' registries."""

    def __init__(self, registry: Any, interface: Any, name: str) -> None:
        """Name an entry; `interface` is the class that registers."""
        self._registry, self._interface, self._name = registry, interface, name

    def read(self) -> Function | None:
        """Return the function of that name."""
        found: Function | None = self._registry.get(self._name)
        return found

    def write(self, function: Function) -> None:
        """Register another function under that name."""
        self._interface.register(self._name, function)


class Global:
    """A global name of the file that defines a model."""

    def __init__(self, scope: dict[str, Any], name: str) -> None:
        """Name a global."""
        self._scope, self._name = scope, name

    def read(self) -> Function | None:
        """Return the function of that name."""
        return self._scope.get(self._name)

    def write(self, function: Function) -> None:
        """Bind the name to another function."""
        self._scope[self._name] = function


class Method:
    """A method, in the class that defines it: a model that is pickled has none of it."""

    def __init__(self, of: type, name: str) -> None:
        """Name a method of `of` or of one of its bases."""
        self._owner = next(each for each in of.__mro__ if name in vars(each))
        self._name = name

    @property
    def key(self) -> tuple[str, int, str]:
        """By which two places are the same."""
        return ("method", id(self._owner), self._name)

    def read(self) -> Function | None:
        """Return the function of that name."""
        found: Function | None = vars(self._owner).get(self._name)
        return found

    def write(self, function: Function) -> None:
        """Put another function there."""
        setattr(self._owner, self._name, function)


class Point:
    """One place, the function that was found there, and what is wrapped around it."""

    def __init__(self, place: Place) -> None:
        """Wrap nothing yet."""
        self._place = place
        self._wraps: list[Wrap] = []
        self._found: Function | None = None
        self._written: Function | None = None

    def add(self, wrap: Wrap, *, inside: bool = False) -> None:
        """Wrap the function that is in use; the latest wrap is called first, if not `inside`."""
        with _lock:
            if not self.is_written:
                self._found = self._place.read()
                self._wraps.clear()
            if wrap not in self._wraps:
                self._wraps.insert(0 if inside else len(self._wraps), wrap)
                self._write()

    def remove(self, wrap: Wrap) -> None:
        """Take one wrap away again; without any, the place has what was found there."""
        with _lock:
            if wrap in self._wraps and self.is_written:
                self._wraps.remove(wrap)
                self._write()

    def has(self, wrap: Wrap) -> bool:
        """Whether calls go through this wrap."""
        return wrap in self._wraps and self.is_written

    @property
    def is_written(self) -> bool:
        """Whether the place still has what was written here last, and that wraps something."""
        return bool(self._wraps) and self._place.read() is self._written

    def _write(self) -> None:
        function = self._found
        if function is None:
            raise RuntimeError("a function is wrapped before it is found")
        for wrap in self._wraps:
            function = wrap(function)
        self._place.write(function)
        self._written = function


_points: dict[tuple[str, int, str], Point] = {}


def attention_points(modules: Iterator[nn.Module], config: PreTrainedConfig) -> list[Point]:
    """Return where the attention layers among `modules` look their function up."""
    name = config._attn_implementation or "eager"
    if name != "eager":
        place = Registered(ALL_ATTENTION_FUNCTIONS, AttentionInterface, name)
        return [_point(("attention", 0, name), place)]
    scopes = {id(scope): (scope, own) for scope, own in map(_eager_of, modules) if own is not None}
    return [
        _point(("global", key, own), Global(scope, own))
        for key, (scope, own) in scopes.items()
        if own is not None
    ]


def mask_points(config: PreTrainedConfig) -> list[Point]:
    """Return where masks for the model's attention are built; none if nothing builds them."""
    name = config._attn_implementation or "eager"
    if name not in ALL_MASK_ATTENTION_FUNCTIONS:
        return []
    place = Registered(ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, name)
    return [_point(("mask", 0, name), place)]


def method_point(of: type, name: str) -> Point:
    """Return where a method is looked up."""
    place = Method(of, name)
    return _point(place.key, place)


def are_wrapped(points: Iterable[tuple[Point, Wrap]]) -> bool:
    """Whether calls go through the wrap of each of these points."""
    return all(point.has(wrap) for point, wrap in points)


@contextmanager
def wrapped(points: list[Point], wrap: Wrap) -> Iterator[None]:
    """Wrap the functions of `points` until the block is left."""
    for point in points:
        point.add(wrap)
    try:
        yield
    finally:
        for point in points:
            point.remove(wrap)


def _point(key: tuple[str, int, str], place: Place) -> Point:
    with _lock:
        return _points.setdefault(key, Point(place))


def _eager_of(module: nn.Module) -> tuple[dict[str, Any], str | None]:
    """Return the globals of the file that defines a module, and its name for eager attention."""
    forward = inspect.unwrap(type(module).forward)
    scope: dict[str, Any] = getattr(forward, "__globals__", {})
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    own = next((each for each in names if each.endswith(_EAGER) and each in scope), None)
    return scope, own
