"""What an oracle is given: an object that knows what follows an observation."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import attrs

from kvpolicy.errors import InvalidValueError, UnsupportedModelError, shown
from kvpolicy.evaluation.recording import Future
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import ModelFacts


@runtime_checkable
class Foresight(Protocol):
    """Knows what follows an observation, like `kvpolicy.evaluation.recording.Recording`."""

    def future_of(self, observation: Observation) -> Future:
        """Return the future queries, keys and values of the layer and heads that are shown."""
        ...


def foresight(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    """Accept an object that knows the future, for use as a validator."""
    if isinstance(value, type) or not isinstance(value, Foresight):
        raise InvalidValueError(
            f"{option.name!r} must have a method future_of, but is {shown(value)}. Give what "
            "kvpolicy.evaluation.measures.reconstruction.record returns"
        )


def check_layers(model: ModelFacts, scorer: str) -> None:
    """Raise UnsupportedModelError if layers share keys: a recording has one layer's queries."""
    if model.readers > 1:
        raise UnsupportedModelError(
            f"scorer {scorer!r} knows the future queries of one layer, but in {model.name} "
            f"{model.readers} layers attend with the same keys and values. Use 'restkv'."
        )
