"""Allocate so that some layers keep everything, and the others share the rest of the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from attrs import Attribute
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.budget import LARGEST
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, positive, share
from kvpolicy.pipeline.capabilities import ModelFacts


def _as_layers(layers: Any) -> Any:
    """Return a sequence as a tuple. Other values are left for the validator."""
    return (
        tuple(layers)
        if isinstance(layers, Sequence) and not isinstance(layers, str | bytes)
        else layers
    )


def _layers(instance: object, option: Attribute[Any], layers: Any) -> None:
    """Raise InvalidValueError unless `layers` has different ints of at least 0, one or more."""
    if (
        not isinstance(layers, tuple)
        or not layers
        or any(type(layer) is not int or not 0 <= layer <= LARGEST for layer in layers)
        or len(set(layers)) < len(layers)
    ):
        raise InvalidValueError(
            f"{option.name!r} must be a list of different layers, counted from 0, "
            f"not {shown(layers)}"
        )


@attrs.frozen(kw_only=True)
class SkippingAllocator:
    """Lets `layers` keep all positions, and gives the other layers equal parts of the rest.

    rest = (layers of the model * budget - skipped layers * tokens seen) / (layers not skipped)

    The rest is at least `least` times the budget. With a longer prompt the skipped layers are
    evicted too.

    Devoto et al., EMNLP 2024, https://arxiv.org/abs/2406.11430.

    >>> from kvpolicy.testing import observation
    >>> allocator = SkippingAllocator(layers=[0])
    >>> [allocator.allocate(torch.zeros(1, 1, 32), observation(layer=layer, num_layers=4), 14)
    ...  for layer in range(4)]
    [tensor([[32]]), tensor([[8]]), tensor([[8]]), tensor([[8]])]
    """

    position_bias: ClassVar[bool] = True

    layers: tuple[int, ...] = attrs.field(default=(0, 1), converter=_as_layers, validator=_layers)
    least: float = attrs.field(default=0.5, converter=as_float, validator=[positive, share])

    def check_model(self, model: ModelFacts) -> None:
        """Raise InvalidValueError if the model does not have these layers and others."""
        if max(self.layers) >= model.layers or len(self.layers) == model.layers:
            raise InvalidValueError(
                f"'layers' {list(self.layers)} must be some, but not all, of the {model.layers} "
                f"layers of {model.name} that evict: 0 to {model.layers - 1}."
            )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the same count for all heads of a layer. It does not depend on the scores."""
        batch, heads, length = scores.shape
        # Tokens seen, not positions held: after a turn, layers hold different numbers.
        seen = observation.seen
        skipped = sum(layer < observation.num_layers for layer in self.layers)
        others = observation.num_layers - skipped
        rest = budget
        if skipped and others:
            total = budget * observation.num_layers
            paid = max((total - skipped * seen) // others, math.ceil(self.least * budget))
            rest = min(paid, seen)
            if observation.layer in self.layers:
                rest = (total - others * rest) // skipped
        return torch.full((batch, heads), min(rest, length), dtype=torch.long, device="cpu")
