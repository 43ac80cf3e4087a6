"""What a part may say of itself, so that a policy that cannot work is refused when it is built.

A part says so by a class attribute or a method of that name; one that says nothing demands nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs


@runtime_checkable
class SaysAcrossHeads(Protocol):
    """A part for which all heads of a layer must hold the same positions."""

    @property
    def across_heads(self) -> bool:
        """Whether it compares or joins the heads of a layer position by position."""
        ...


@runtime_checkable
class SaysUneven(Protocol):
    """An allocator that may give the heads of a layer different numbers of positions."""

    @property
    def uneven(self) -> bool:
        """Whether heads of one layer may differ."""
        ...


@runtime_checkable
class SaysPrefillOnly(Protocol):
    """A part that needs the queries of a whole prompt, and so cannot evict while decoding."""

    @property
    def prefill_only(self) -> bool:
        """Whether `every` is refused."""
        ...


@runtime_checkable
class SaysNeeds(Protocol):
    """A part that computes with what not every model shows."""

    @property
    def needs(self) -> Sequence[str]:
        """The fields of an observation that must not be None: "rotary" or "output_weight"."""
        ...


@runtime_checkable
class ChecksParts(Protocol):
    """A part that goes with some other parts only."""

    def check_parts(self, parts: Mapping[str, object]) -> None:
        """Raise InvalidValueError if it does not go with these: all five of a policy, by kind."""
        ...


@runtime_checkable
class ChecksSettings(Protocol):
    """A part that goes with some settings of a policy only."""

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidValueError if it does not go with these settings of its policy, by name."""
        ...


@attrs.frozen(kw_only=True)
class ModelFacts:
    """What a part may want to know of a model before any work is done.

    `layers` counts the layers that evict; `heads` are query heads, `kv_heads` key/value heads.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    has_rotary: bool


@runtime_checkable
class ChecksModel(Protocol):
    """A part that does not fit every model."""

    def check_model(self, model: ModelFacts) -> None:
        """Raise InvalidValueError or UnsupportedModelError if it does not fit."""
        ...


def across_heads(part: object) -> bool:
    """Whether a part needs all heads of a layer to hold the same positions."""
    return isinstance(part, SaysAcrossHeads) and part.across_heads


def is_uneven(part: object) -> bool:
    """Whether an allocator may treat heads of one layer differently."""
    return isinstance(part, SaysUneven) and part.uneven


def is_prefill_only(part: object) -> bool:
    """Whether a part can judge a whole prompt only."""
    return isinstance(part, SaysPrefillOnly) and part.prefill_only


def needs_of(part: object) -> tuple[str, ...]:
    """Return the optional fields of an observation that a part cannot do without."""
    return tuple(part.needs) if isinstance(part, SaysNeeds) else ()
