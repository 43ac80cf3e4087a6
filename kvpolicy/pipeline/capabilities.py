"""What a part can declare about itself: which other parts, settings and models it needs.

A part declares it by a class attribute or a method of that name. A part that declares nothing goes
with everything. A policy that cannot work is then refused when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs

from kvpolicy.stages.compaction import AddsBias, KeepsRemainder


@runtime_checkable
class SaysAcrossHeads(Protocol):
    """A part for which all heads of a layer must hold the same positions."""

    @property
    def across_heads(self) -> bool:
        """Whether the part compares or joins the heads of a layer position by position."""
        ...


@runtime_checkable
class SaysUneven(Protocol):
    """An allocator that may give the heads of a layer different numbers of positions."""

    @property
    def uneven(self) -> bool:
        """Whether heads of one layer may get different numbers of positions."""
        ...


@runtime_checkable
class SaysPrefillOnly(Protocol):
    """A part that needs the queries of a whole prompt. It cannot evict while decoding."""

    @property
    def prefill_only(self) -> bool:
        """Whether the part refuses the setting `every`."""
        ...


@runtime_checkable
class SaysNeeds(Protocol):
    """A part that computes with what not every model shows."""

    @property
    def needs(self) -> Sequence[str]:
        """The fields of an observation that must not be None: "rotary" or "output_weight"."""
        ...


@runtime_checkable
class SaysCountsBudget(Protocol):
    """A part that computes with the number of positions that the budget allows."""

    @property
    def counts_budget(self) -> bool:
        """Whether the part refuses a budget that is an error target."""
        ...


@runtime_checkable
class SaysCapturable(Protocol):
    """A part that a decode step can run again and again after it was captured once."""

    @property
    def capturable(self) -> bool:
        """Whether only tensors say what the part does for a token, and no number of the host."""
        ...


@runtime_checkable
class SaysByRecency(Protocol):
    """A scorer for which a position matters by its age alone."""

    @property
    def by_recency(self) -> bool:
        """Whether a later position always has the higher score."""
        ...


@runtime_checkable
class SaysReplayable(Protocol):
    """A scorer that may be shown queries which stand behind all positions."""

    @property
    def replayable(self) -> bool:
        """Whether scores are of at least 0, and follow `observation.ahead`."""
        ...


@runtime_checkable
class SaysPositionBias(Protocol):
    """A part for models that add a bias by distance to the logits of their attention."""

    @property
    def position_bias(self) -> bool:
        """Whether the part takes attention from the observation alone, or needs none."""
        ...


@runtime_checkable
class SaysFitsValues(Protocol):
    """A compactor that computes values from outputs, and not from evicted rows."""

    @property
    def fits_values(self) -> bool:
        """Whether a kept value may become more than what it is and what is evicted."""
        ...


@runtime_checkable
class SaysAverages(Protocol):
    """A compactor whose remainder `kvpolicy.exactness` can compute by itself."""

    @property
    def averages(self) -> bool:
        """Whether kept rows stay as they are, and the remainder is the mean of evicted rows."""
        ...


@runtime_checkable
class ChecksParts(Protocol):
    """A part that works with some other parts only."""

    def check_parts(self, parts: Mapping[str, object]) -> None:
        """Raise InvalidValueError if it does not work with `parts`.

        `parts` has all five parts of the policy, by kind.
        """
        ...


@runtime_checkable
class ChecksSettings(Protocol):
    """A part that goes with some settings of a policy only."""

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidValueError if it does not go with these settings of its policy, by name."""
        ...


@attrs.frozen(kw_only=True)
class ModelFacts:
    """What a part may need to know about a model before any work is done.

    `layers` counts the layers that evict, `heads` the query heads of a layer, and `kv_heads` its
    key/value heads. `has_rotary` says whether the model's rotary embedding is known. `readers` is
    the largest number of layers that attend with the same keys and values.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    has_rotary: bool
    readers: int = 1


@runtime_checkable
class ChecksModel(Protocol):
    """A part that works with some models only."""

    def check_model(self, model: ModelFacts) -> None:
        """Raise InvalidValueError or UnsupportedModelError if it does not work with `model`."""
        ...


def across_heads(part: object) -> bool:
    """Return whether a part needs all heads of a layer to hold the same positions."""
    return isinstance(part, SaysAcrossHeads) and part.across_heads


def is_uneven(part: object) -> bool:
    """Return whether an allocator may give heads of one layer different numbers of positions."""
    return isinstance(part, SaysUneven) and part.uneven


def is_capturable(part: object) -> bool:
    """Return whether a captured decode step can run a part again and again."""
    return isinstance(part, SaysCapturable) and part.capturable


def is_by_recency(part: object) -> bool:
    """Return whether a scorer ranks positions by their age alone."""
    return isinstance(part, SaysByRecency) and part.by_recency


def is_replayable(part: object) -> bool:
    """Return whether a scorer may be shown replayed queries."""
    return isinstance(part, SaysReplayable) and part.replayable


def follows_bias(part: object) -> bool:
    """Return whether a part may be shown attention with a position bias."""
    return isinstance(part, SaysPositionBias) and part.position_bias


def is_fitting_values(part: object) -> bool:
    """Return whether a compactor fits kept values to outputs."""
    return isinstance(part, SaysFitsValues) and part.fits_values


def keeps_remainder(part: object) -> bool:
    """Return whether a compactor keeps a row that stands for what it evicts."""
    return isinstance(part, KeepsRemainder)


def biases_rows(part: object) -> bool:
    """Return whether attention must add a bias to logits of what a compactor keeps."""
    return isinstance(part, KeepsRemainder | AddsBias)


def is_averaging(part: object) -> bool:
    """Return whether a compactor's kept rows are unchanged, and its remainder is the mean."""
    return isinstance(part, SaysAverages) and part.averages


def is_prefill_only(part: object) -> bool:
    """Return whether a part needs the queries of a whole prompt."""
    return isinstance(part, SaysPrefillOnly) and part.prefill_only


def counts_budget(part: object) -> bool:
    """Return whether a part computes with the number of positions that the budget allows."""
    return isinstance(part, SaysCountsBudget) and part.counts_budget


def needs_of(part: object) -> tuple[str, ...]:
    """Return the optional fields of an observation that a part cannot do without."""
    return tuple(part.needs) if isinstance(part, SaysNeeds) else ()
