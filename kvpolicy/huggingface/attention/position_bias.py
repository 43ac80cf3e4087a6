"""The bias that a model adds by distance, for the keys that a layer still holds.

The model makes it for tokens that follow one another, as many as the cache reports. Here it is
looked up for the tokens that the keys belong to, for each row and head.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.attention.arguments import POSITION_BIAS, Call
from kvpolicy.huggingface.attention.listener import Listener
from kvpolicy.observation.logits import Logits
from kvpolicy.observation.position_bias import PositionBias


def with_bias(
    layer: Listener, call: Call, query: Float[Tensor, "B H Q D"], logits: Logits
) -> tuple[Logits, dict[str, Any]]:
    """Return the logits with the bias of a call, and its arguments with that of the keys held.

    Raises UnsupportedModelError for a bias that is not by distance of the tokens read.
    """
    table, contents, extent = call.kwargs.get(POSITION_BIAS), layer.contents, _extent(layer)
    if table is None or contents is None:
        return logits, call.kwargs
    slots, (rows, heads, count, _) = contents.slots, query.shape
    least = min(layer.seen, extent - 1 + count)
    shape = tuple(table.shape)
    if shape[0] not in (1, rows) or shape[1:3] != (heads, count) or shape[3] < least:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} gives its attention a position bias of {shape}, where "
            f"[{rows}, {heads}, {count}, at least {least}] was expected. This version of "
            "transformers makes it in another way than those that are known."
        )
    table = table[..., -layer.seen :]
    shifts, tokens = _tokens_of(slots, layer.seen, query.device)
    bias = PositionBias(table=table, read=layer.seen, shifts=shifts, tokens=tokens)
    own = table[..., -slots.held :]
    if contents.ragged is None and (layer.has_evicted or slots.columns is not None):
        own = bias.of(slots.positions)
    return attrs.evolve(logits, bias=bias), call.kwargs | {POSITION_BIAS: own}


def _extent(layer: Listener) -> int:
    return layer.session.bias_extent or 0


def _tokens_of(
    slots: Slots, read: int, device: torch.device
) -> tuple[Int[Tensor, " B"] | None, Int[Tensor, "B P"] | None]:
    """Return by how much tokens exceed positions, or which tokens they are; padding counts."""
    real = slots.read(read)
    if real is not None:
        # The real tokens of a row, in order, and behind them its padding.
        return None, (~real).to(device).int().argsort(dim=1, stable=True)
    if all(seen == read for seen in slots.seen):
        return None, None
    return sent([read - seen for seen in slots.seen], device), None
