"""The error of a group of query heads in PyTorch, on every device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.largest_error.others import Others, values_at, without_largest


@torch.no_grad()
def joint_reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "N R GD"] | None,
    *,
    summed: int | None = None,
    learned_sinks: bool = False,
) -> Float[Tensor, "B N S"]:
    """Stack the changes of a group's heads, and project them together, in blocks of positions."""
    kv_heads = values.shape[1]
    odds = attention / (1 - attention).clamp_min(torch.finfo(attention.dtype).eps)
    summed = attention.shape[-1] if summed is None else summed
    if summed == 0:
        nothing = odds.new_zeros(*odds.shape[:2], values.shape[-1])
        return _by_odds(odds, values, nothing, factors)
    others = without_largest(attention, values, summed=summed, learned_sinks=learned_sinks)
    errors = _by_odds(odds, values, others.output.to(odds.dtype), factors)
    places = others.place.view(-1, kv_heads, attention.shape[1] // kv_heads)
    return errors.scatter_(-1, places, _of_largest(odds, values, factors, others))


def _by_odds(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "N R GD"] | None,
) -> Float[Tensor, "B N S"]:
    batch, kv_heads, positions, dim = values.shape
    grouped = odds.unflatten(1, (kv_heads, -1))
    outputs = output.unflatten(1, (kv_heads, -1))[:, :, None]
    errors = odds.new_empty(batch, kv_heads, positions)
    floats = batch * odds.shape[1] * dim
    for s in spans(0, positions, rows_per_block(2 * floats, values.device)):
        missing = outputs - values[:, :, s, None].to(odds.dtype)
        errors[..., s] = _norms(missing * grouped[..., s, None].transpose(2, 3), factors)
    return errors


def _of_largest(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "N R GD"] | None,
    others: Others,
) -> Float[Tensor, "B N G"]:
    """Return the errors of the positions at which a head of the group has its largest weight.

    Each head of the group is asked about the largest of every one.
    """
    kv_heads = values.shape[1]
    groups = odds.shape[1] // kv_heads
    asked = others.place.view(-1, kv_heads, groups).repeat_interleave(groups, dim=1)
    value = values_at(values, asked).to(odds.dtype)
    exact = others.mean.to(odds.dtype)[:, :, None] - value
    missing = others.output.to(odds.dtype)[:, :, None] - value
    changes = torch.where(
        (asked == others.place)[..., None],
        others.weight[..., None].to(odds.dtype) * exact,
        odds.gather(-1, asked)[..., None] * missing,
    )
    return _norms(changes.unflatten(1, (kv_heads, groups)).transpose(2, 3), factors)


def _norms(
    changes: Float[Tensor, "B N n G D"], factors: Float[Tensor, "N R GD"] | None
) -> Float[Tensor, "B N n"]:
    stacked = changes.flatten(-2)
    if factors is not None:
        stacked = stacked @ factors.mT.to(stacked.dtype)
    norms: Tensor = torch.linalg.vector_norm(stacked, dim=-1)
    return norms
