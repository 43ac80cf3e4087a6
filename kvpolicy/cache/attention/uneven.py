"""Attention over uneven heads, which no attention function of a model can compute."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import CacheStateError
from kvpolicy.observation.logits import Logits
from kvpolicy_kernels import ragged_attention


def attend_uneven(
    queries: Float[Tensor, "B H Q D"], contents: Contents, keys: AttendedKeys, logits: Logits
) -> Float[Tensor, "B Q H Dv"]:
    """Let the queries of the newest Q tokens attend to ragged and dense rows.

    Gradients flow to queries, keys and values. Raises CacheStateError for contents without ragged
    rows.
    """
    ragged = contents.ragged
    if ragged is None or keys.ragged is None:
        raise CacheStateError("attention over uneven heads was asked for, but all heads are alike.")
    slots, padding = contents.slots, None
    # A tensor is sent to the device for padded batches only: sending makes the device wait.
    if slots.is_padded:
        padding = torch.tensor(slots.lengths, device=queries.device).neg().add(slots.held)
    tables = (queries, keys.ragged, ragged.values, keys.dense, contents.values.view)
    gradients = torch.is_grad_enabled() and any(table.requires_grad for table in tables)
    if gradients or logits.bias is not None:
        return _by_products(queries, contents, keys, logits).transpose(1, 2).contiguous()
    output = ragged_attention(
        queries,
        keys.ragged,
        ragged.values,
        ragged.lengths,
        keys.dense,
        contents.values.view,
        scaling=logits.scaling,
        softcap=logits.softcap,
        sinks=logits.sinks,
        padding=padding,
    )
    return output.to(queries.dtype).transpose(1, 2).contiguous()


def _by_products(
    queries: Float[Tensor, "B H Q D"], contents: Contents, keys: AttendedKeys, logits: Logits
) -> Float[Tensor, "B H Q Dv"]:
    """Attend by operations that have gradients, with a position bias if there is one.

    Shorter heads are padded on the left.
    """
    ragged, slots = contents.ragged, contents.slots
    if ragged is None or keys.ragged is None:
        raise CacheStateError("attention over uneven heads was asked for, but all heads are alike.")
    heads, count = queries.shape[1:3]
    precision = torch.promote_types(queries.dtype, torch.float32)
    rows = torch.cat([ragged.padded(keys.ragged), keys.dense], 2).to(precision)
    values = contents.joined("values").to(precision)
    groups = heads // rows.shape[1]
    found = queries.to(precision) @ rows.repeat_interleave(groups, 1).mT * logits.scaling
    if logits.softcap is not None:
        found = torch.tanh(found / logits.softcap) * logits.softcap
    if logits.bias is not None:
        held = torch.cat([ragged.padded(ragged.positions, -1).long(), slots.positions], 2)
        found = found + logits.bias.of(held)
    device, column = queries.device, torch.arange(rows.shape[2], device=queries.device)
    first = ragged.longest - ragged.lengths.to(device)[:, :, None]
    padding = torch.tensor([slots.held - length for length in slots.lengths], device=device)
    is_ragged = column < ragged.longest
    visible = torch.where(
        is_ragged, column >= first, column >= ragged.longest + padding[:, None, None]
    ).repeat_interleave(groups, 1)
    last = torch.arange(rows.shape[2] - count, rows.shape[2], device=device)
    visible = visible[:, :, None] & (column <= last[:, None])
    # A query that sees nothing would make NaN of -inf, and its gradients NaN too.
    found = found.masked_fill(~visible, torch.finfo(precision).min)
    if logits.sinks is not None:
        sink = logits.sinks.to(precision)[:, None, None].expand(*found.shape[:3], 1)
        found = torch.cat([found, sink], -1)
    weights = found.softmax(-1)[..., : rows.shape[2]].masked_fill(~visible, 0)
    return (weights @ values.repeat_interleave(groups, 1)).to(queries.dtype)
