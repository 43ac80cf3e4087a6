"""A row of attention without its largest weight: what the other positions add up to.

Of all weights a of a row only the largest can be near 1. There float32 loses all digits of 1 - a
and of o - v. So its error is computed from the other weights: a / (1 - a) (o - v) is
a (mean - v), where `mean` is the output of the others, with their weights scaled up to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.weighted_values import weighted_values


class Others(NamedTuple):
    """The largest weight of each head, and the positions beside it.

    `place` is its position and `weight` its attention. `rest` is 1 - weight, added up from the
    other weights. `output` is o = sum_i a_i v_i, and `mean` is the output without that position.
    """

    place: Int[Tensor, "B H 1"]
    weight: Float[Tensor, "B H 1"]
    rest: Float[Tensor, "B H 1"]
    value: Float[Tensor, "B H D"]
    output: Float[Tensor, "B H D"]
    mean: Float[Tensor, "B H D"]


def without_largest(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    *,
    summed: int,
    learned_sinks: bool = False,
) -> Others:
    """Split each head's output into the largest weight among the first `summed`, and the others.

    The outputs are over the first `summed` positions, at least 1. With `learned_sinks` a row sums
    to less than 1, and the sink has what is missing. Float64 attention is summed in float64.

    >>> attention = torch.tensor([[[0.75, 0.25]]])
    >>> without_largest(attention, torch.tensor([[[[1.0], [5.0]]]]), summed=2).mean
    tensor([[[5.]]])
    """
    split = largest_apart(attention, values, summed=summed, learned_sinks=learned_sinks)
    value = values_at(values, split.place)[..., 0, :].to(split.others.dtype)
    return Others(
        place=split.place,
        weight=split.weight,
        rest=split.rest,
        value=value,
        output=torch.addcmul(split.others, split.weight.to(value.dtype), value),
        mean=mean_of(split.others, split.rest),
    )


class Apart(NamedTuple):
    """The largest weight of each head, its place, what the others sum to, and their output."""

    place: Int[Tensor, "B H 1"]
    weight: Float[Tensor, "B H 1"]
    rest: Float[Tensor, "B H 1"]
    others: Float[Tensor, "B H D"]


def largest_apart(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    *,
    summed: int,
    learned_sinks: bool = False,
) -> Apart:
    """Return the largest weight among the first `summed`, and the output of the others.

    >>> found = largest_apart(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[[1.0], [5.0]]]]),
    ...                       summed=2)
    >>> found.weight.item(), found.rest.item(), found.others.item()
    (0.75, 0.25, 1.25)
    """
    weight, place = attention[..., :summed].max(-1, keepdim=True)
    others = attention.scatter(-1, place, 0.0)
    rest = others.sum(-1, keepdim=True)
    if learned_sinks:
        rest = rest + (1 - rest - weight).clamp_min(0)
    output = _sum(others[..., :summed], values[:, :, :summed])
    return Apart(place=place, weight=weight, rest=rest, others=output)


def mean_of(others: Float[Tensor, "B H D"], rest: Float[Tensor, "B H 1"]) -> Float[Tensor, "B H D"]:
    """Return the output of the others with their weights scaled up to 1."""
    return others / rest.clamp_min(torch.finfo(rest.dtype).tiny)


def values_at(
    values: Float[Tensor, "B N S D"], places: Int[Tensor, "B H n"]
) -> Float[Tensor, "B H n D"]:
    """Return the values at some positions of each query head."""
    kv_heads, dim = values.shape[1], values.shape[-1]
    flat = places.unflatten(1, (kv_heads, -1)).flatten(2)[..., None]
    found: Tensor = values.gather(2, flat.expand(-1, -1, -1, dim)).view(*places.shape, dim)
    return found


def _sum(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float[Tensor, "B H D"]:
    if attention.dtype != torch.float64:
        return weighted_values(attention, values)
    grouped = attention.unflatten(1, (values.shape[1], -1))
    summed: Tensor = (grouped @ values.to(attention.dtype)).flatten(1, 2)
    return summed
