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

    Raises CacheStateError for contents without ragged rows.
    """
    ragged = contents.ragged
    if ragged is None or keys.ragged is None:
        raise CacheStateError("attention over uneven heads was asked for, but all heads are alike.")
    slots, padding = contents.slots, None
    # A tensor is sent to the device for padded batches only: sending makes the device wait.
    if slots.is_padded:
        padding = torch.tensor(slots.lengths, device=queries.device).neg().add(slots.held)
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
