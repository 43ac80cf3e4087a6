"""The exact change of a layer's output if all but the best positions of each head are removed.

A head's attention a over its values v gives o = sum_i a_i v_i. If a set R of positions is removed
and K is kept, softmax gives their weight to the others:

    o_K - o = m / (1 - m) (o - mean of R) = m / (1 - m) sum_K a v - sum_R a v,    m = sum_R a

The second form is computed, with 1 - m as the sum over K. So neither a small m nor one that is
nearly 1 is lost in rounding: in float32 a head's largest weight may be 1 - 1e-9, which is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.softmax import softmax_and_sink

BLOCK_BYTES = 2**26
"""Bytes of the tensors that one block of heads takes."""

LEAST = 1e-30
"""A smaller weight of what is kept may have been rounded to 0: such a set counts as no choice."""

FINENESS = 16
"""Two neighbouring counts differ by 1, or by this part of the larger."""


@attrs.frozen(kw_only=True, eq=False)
class Removal:
    """What removing all but the first c positions of an order changes, for C counts c.

    - `counts`: the counts, ascending; the last is S.
    - `changes`: o_K - o of each query head, count and query.
    - `errors`: the norm of the layer's change by one key/value head, for each query and count;
      inf where too little weight is left to know.
    - `output`: W_h o_h, summed over the query heads shown.
    """

    counts: Int[Tensor, " C"]
    changes: Float[Tensor, "B H C W Dv"]
    errors: Float[Tensor, "B N C W"]
    output: Float[Tensor, "B W M"]


def counts_between(least: int, most: int) -> list[int]:
    """Return counts from `least` to `most`, ever further apart, up to a sixteenth.

    >>> counts_between(2, 40)[-5:]
    [33, 34, 36, 38, 40]
    """
    found = [least]
    while found[-1] < most:
        found.append(min(most, found[-1] + max(1, (found[-1] - least) // FINENESS)))
    return found


def removal(observation: Observation, scores: Float[Tensor, "B N S"], least: int) -> Removal:
    """Return what each count from `least` on changes; positions are kept in the order of scores.

    Of equal scores the earlier position comes first, as selection has it.
    """
    counts = counts_between(max(1, min(least, observation.length)), observation.length)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    kv_heads = observation.keys.shape[1]
    floats = _floats_of_a_head(observation, len(counts))
    step = max(1, BLOCK_BYTES // (4 * floats))
    blocks = [
        _of_heads(observation, order, counts, slice(start, min(start + step, kv_heads)))
        for start in range(0, kv_heads, step)
    ]
    changes, errors, outputs = (torch.cat(each, 1) for each in zip(*blocks, strict=True))
    return Removal(
        counts=torch.tensor(counts, device=scores.device),
        changes=changes,
        errors=errors,
        output=projected(observation, outputs),
    )


def projected(
    observation: Observation, outputs: Float[Tensor, "*lead H W Dv"]
) -> Float[Tensor, "*lead W M"]:
    """Return sum_h W_h x_h over the query heads shown, in float32."""
    weights = observation.head_weights
    if weights is None:
        raise TypeError("an error target needs the output projection")
    joined = outputs.transpose(-3, -2).flatten(-2)
    columns: Tensor = weights.transpose(0, 1).flatten(1).float()
    return joined @ columns.mT


def _floats_of_a_head(observation: Observation, counts: int) -> int:
    """Return how many numbers the tensors of one key/value head have, of a whole batch."""
    batch, heads, window, _ = observation.queries.shape
    rows = batch * (heads // observation.keys.shape[1]) * window
    return int(rows * (3 * observation.length + 6 * counts * observation.values.shape[-1]))


def _of_heads(
    observation: Observation, order: Int[Tensor, "B N S"], counts: Sequence[int], heads: slice
) -> tuple[Float[Tensor, "B h C W Dv"], Float[Tensor, "B n C W"], Float[Tensor, "B h W Dv"]]:
    """Return changes, errors and outputs of some key/value heads."""
    shown = _some(observation, heads)
    attention, sink = softmax_and_sink(shown.logits, shown.sink_logits)
    order = order[:, heads]
    groups = attention.shape[1] // order.shape[1]
    by_group = attention.unflatten(1, (order.shape[1], groups))
    places = order[:, :, None, None].expand_as(by_group)
    ranked = by_group.gather(-1, places)
    values = shown.values.float().gather(2, order[..., None].expand(shown.values.shape))
    edges = list(pairwise([0, *counts]))
    mass = torch.stack([ranked[..., a:b].sum(-1) for a, b in edges], 3)
    sums = torch.stack(
        [torch.einsum("bngws,bnsd->bngwd", ranked[..., a:b], values[:, :, a:b]) for a, b in edges],
        3,
    )
    kept, lost = mass.cumsum(3), _behind(mass)
    rest = kept if sink is None else kept + sink.unflatten(1, (-1, groups)).mT
    odds = (lost / rest.clamp_min(LEAST))[..., None]
    changes = odds * sums.cumsum(3) - _behind(sums)
    errors = _norms(shown, changes).masked_fill((rest < LEAST).any(2), torch.inf)
    return changes.flatten(1, 2), errors, sums.sum(3).flatten(1, 2)


def _some(observation: Observation, heads: slice) -> Observation:
    """Return the observation of some key/value heads."""
    groups = observation.queries.shape[1] // observation.keys.shape[1]
    group = slice(heads.start * groups, heads.stop * groups)
    sinks, bias = observation.sink_logits, observation.position_bias
    return attrs.evolve(
        observation,
        queries=observation.queries[:, group],
        keys=observation.keys[:, heads],
        values=observation.values[:, heads],
        positions=observation.positions[:, heads],
        state=None,
        sink_logits=None if sinks is None else sinks[group],
        position_bias=None if bias is None else bias[:, group],
        first_head=observation.first_head + group.start,
    )


def _behind(parts: Tensor) -> Tensor:
    """Return for each count the sum of the parts behind it, added from the last on."""
    summed = parts.flip(3).cumsum(3).flip(3)
    return torch.cat([summed[:, :, :, 1:], torch.zeros_like(summed[:, :, :, :1])], 3)


def _norms(shown: Observation, changes: Float[Tensor, "B n G C W Dv"]) -> Float[Tensor, "B n C W"]:
    """Return || sum_h W_h change_h || over the query heads of each group."""
    factors = shown.group_factors
    if factors is None:
        raise TypeError("an error target needs the output projection")
    joined = changes.permute(0, 1, 3, 4, 2, 5).flatten(-2)
    norms: Tensor = torch.linalg.vector_norm(joined @ factors[:, None].mT.float(), dim=-1)
    return norms
