"""Rotates full keys to the slots that they had in an evicted cache, in float64.

It is for policies with `slot_positions`. The angles are computed here, apart from the cache's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy.exactness.forwards import Forward, columns_of


def slot_frequencies(model: PreTrainedModel) -> Float[Tensor, " pairs"]:
    """Return the angle per position of each pair of channels.

    Raises ValueError unless the model is known to pair channel i with channel i + D/2.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if not type(model).__name__.startswith(("Llama", "Mistral", "Qwen")) or rotary is None:
        raise ValueError(f"the yardstick does not know how {type(model).__name__} rotates its keys")
    frequencies: Tensor = rotary.inv_freq
    return frequencies.float()


def at_their_slots(
    key: Float[Tensor, "B N T D"],
    forward: Forward,
    layer: int,
    frequencies: Float[Tensor, " pairs"],
) -> Float[Tensor, "B N T D"]:
    """Rotate the keys held before a forward to slots without gaps, right before its new tokens."""
    if not forward.seen:
        return key
    positions, read = forward.positions[layer], forward.real[:, : forward.seen].sum(1)
    held = (positions >= 0).sum(-1, keepdim=True)
    slots = read[:, None, None] - held + torch.arange(positions.shape[-1])
    column = columns_of(positions, forward.real).masked_fill(positions < 0, forward.seen)
    # A model rounds each angle to float32 in its tables; the larger the angle, the more it rounds.
    angles = torch.zeros((*key.shape[:3], len(frequencies)), dtype=torch.float64)
    for places, sign in ((slots, 1), (positions, -1)):
        of_token = torch.zeros((*key.shape[:2], key.shape[2] + 1))
        of_token.scatter_(2, column, places.masked_fill(positions < 0, 0).float())
        angles += sign * (of_token[..., :-1, None] * frequencies).double()
    # Some models rotate only the first channels.
    turned, left = key.double().tensor_split([2 * len(frequencies)], -1)
    first, second = turned.chunk(2, -1)
    rotated = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag, left], -1).to(key.dtype)
