"""Attention over uneven heads and remainders, which no attention function of a model computes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import CacheStateError
from kvpolicy.observation.logits import Logits
from kvpolicy_kernels import ragged_attention


def attend_uneven(
    queries: Float[Tensor, "B H Q D"], contents: Contents, keys: AttendedKeys, logits: Logits
) -> Float[Tensor, "B Q H Dv"]:
    """Let the queries of the newest Q tokens attend to ragged and dense rows and the remainder.

    Gradients flow to queries, keys and values. Raises CacheStateError for contents of dense rows
    alone.
    """
    if contents.is_plain:
        raise CacheStateError(
            "attention over uneven heads was asked for, but all heads are alike, without a "
            "remainder."
        )
    ragged_keys, ragged_values, lengths = _ragged_of(contents, keys)
    slots, padding = contents.slots, None
    # A tensor is sent to the device for padded batches only: sending makes the device wait.
    if slots.is_padded:
        padding = torch.tensor(slots.lengths, device=queries.device).neg().add(slots.held)
    tables = (queries, ragged_keys, ragged_values, keys.dense, contents.values.view)
    gradients = torch.is_grad_enabled() and any(table.requires_grad for table in tables)
    if gradients or logits.bias is not None:
        return _by_products(queries, contents, keys, logits).transpose(1, 2).contiguous()
    remainder = contents.remainder
    output = ragged_attention(
        queries,
        ragged_keys,
        ragged_values,
        lengths,
        keys.dense,
        contents.values.view,
        scaling=logits.scaling,
        softcap=logits.softcap,
        sinks=logits.sinks,
        padding=padding,
        extra_keys=None if remainder is None else remainder.keys,
        extra_values=None if remainder is None else remainder.values,
        extra_bias=None if remainder is None else remainder.bias,
        ragged_bias=None if contents.ragged is None else contents.ragged.bias,
    )
    return output.to(queries.dtype).transpose(1, 2).contiguous()


def _ragged_of(
    contents: Contents, keys: AttendedKeys
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R Dv"], Int[Tensor, "B N"]]:
    """Return the ragged keys and values, and how many rows each head has: none if all are dense."""
    ragged, slots = contents.ragged, contents.slots
    if ragged is not None and keys.ragged is not None:
        return keys.ragged, ragged.values, ragged.lengths
    none = torch.zeros((slots.batch, slots.heads), dtype=torch.long, device="cpu")
    return keys.dense[0, 0, :0], contents.values.view[0, 0, :0], none


def _by_products(
    queries: Float[Tensor, "B H Q D"], contents: Contents, keys: AttendedKeys, logits: Logits
) -> Float[Tensor, "B H Q Dv"]:
    """Attend by operations that have gradients, with a position bias if there is one.

    Shorter heads are padded on the left. The remainder is one more column behind all rows.
    """
    ragged, slots, remainder = contents.ragged, contents.slots, contents.remainder
    heads, count = queries.shape[1:3]
    precision = torch.promote_types(queries.dtype, torch.float32)
    rows, longest = keys.dense, 0
    if ragged is not None and keys.ragged is not None:
        rows, longest = torch.cat([ragged.padded(keys.ragged), rows], 2), ragged.longest
    rows, values = rows.to(precision), contents.joined("values").to(precision)
    groups = heads // rows.shape[1]
    found = _capped(queries.to(precision) @ rows.repeat_interleave(groups, 1).mT, logits)
    if logits.bias is not None:
        held = slots.positions
        if ragged is not None:
            held = torch.cat([ragged.padded(ragged.positions, -1).long(), held], 2)
        found = found + logits.bias.of(held)
    if ragged is not None and ragged.bias is not None:
        bias = torch.nn.functional.pad(ragged.padded(ragged.bias), (0, rows.shape[2] - longest))
        found = found + bias.repeat_interleave(groups, 1)[:, :, None]
    device, column = queries.device, torch.arange(rows.shape[2], device=queries.device)
    padding = torch.tensor([slots.held - length for length in slots.lengths], device=device)
    visible = column >= longest + padding[:, None, None]
    if ragged is not None:
        first = longest - ragged.lengths.to(device)[:, :, None]
        visible = torch.where(column < longest, column >= first, visible)
    visible = visible.expand(-1, rows.shape[1], -1).repeat_interleave(groups, 1)
    last = torch.arange(rows.shape[2] - count, rows.shape[2], device=device)
    visible = visible[:, :, None] & (column <= last[:, None])
    # A query that sees nothing would make NaN of -inf, and its gradients NaN too.
    found = found.masked_fill(~visible, torch.finfo(precision).min)
    behind = [found]
    if remainder is not None:
        own = queries.to(precision) @ remainder.keys[..., None].repeat_interleave(groups, 1)
        bias = remainder.bias.repeat_interleave(groups, 1)[..., None, None]
        behind.append((_capped(own, logits) + bias).clamp(min=torch.finfo(precision).min))
        values = torch.cat([values, remainder.values[:, :, None]], 2)
        visible = torch.nn.functional.pad(visible, (0, 1), value=True)
    if logits.sinks is not None:
        sink = logits.sinks.to(precision)[:, None, None].expand(*found.shape[:3], 1)
        behind.append(sink)
    weights = torch.cat(behind, -1).softmax(-1)[..., : values.shape[2]].masked_fill(~visible, 0)
    return (weights @ values.repeat_interleave(groups, 1)).to(queries.dtype)


def _capped(products: Float[Tensor, "B H Q S"], logits: Logits) -> Float[Tensor, "B H Q S"]:
    found = products * logits.scaling
    return found if logits.softcap is None else torch.tanh(found / logits.softcap) * logits.softcap
