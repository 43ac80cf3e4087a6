"""The attention of a captured step: everything here is traced, and asks nothing of the host."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.static.evicting import StaticEvicting
from kvpolicy.cache.static.operators import evict_one
from kvpolicy.cache.static.ring import StaticRing
from kvpolicy.cache.static.rows import StaticRows
from kvpolicy.cache.static.uneven import StaticRagged
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.points import Function

STEP = "_kvpolicy_step"
"""The attribute of keys that a step hands out, by which their attention call finds the rows."""


def handed_out(step: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Write one token, and return the keys and values that it attends to, marked."""
    all_keys, all_values = step.write(keys, values)
    # A tensor of its own: the buffer itself must not refer to what owns it.
    marked = all_keys.view(all_keys.shape)
    setattr(marked, STEP, step)
    return marked, all_values


def attend(
    own: Function,
    module: Any,
    query: Float[Tensor, "B H 1 D"],
    key: Float[Tensor, "B N C D"],
    value: Float[Tensor, "B N C Dv"],
    mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Attend to static rows: by the model's own function `own`, unless heads are uneven."""
    step, call = getattr(key, STEP), Call(module, kwargs)
    if isinstance(step, StaticRagged):
        call.refuse_what_is_not_computed()
        return step.attend(query, *call.settings(query)), None
    if isinstance(step, StaticRing):
        return own(module, query, key, value, None, *args, **kwargs)
    if isinstance(step, StaticEvicting):
        output = own(module, query, key, value, None, *args, **kwargs)
        evict_one(query, step, call.settings(query))
        return output
    return own(module, query, key, value, _mask(step, mask, query), *args, **kwargs)


def _mask(step: StaticRows, mask: Any, query: Float[Tensor, "B H 1 D"]) -> Tensor | None:
    """Return the mask that all layers share, as it fits the rows of one.

    It is built for the layer that holds the most, and the rows of all layers end with the same
    token. Where padding is not where the token counts say, the layer knows better.
    """
    if mask is None:
        visible = step.visible[:, None, None]
        blind = torch.zeros_like(visible, dtype=query.dtype)
        return blind.masked_fill(~visible, torch.finfo(query.dtype).min)
    whole: Tensor = mask[..., -step.width :]
    if step.real is None:
        return whole
    real = step.real[:, None, None]
    if whole.dtype != torch.bool:
        hidden = torch.zeros_like(real, dtype=whole.dtype)
        real = hidden.masked_fill(~real, torch.finfo(whole.dtype).min)
    newer = whole[..., step.held :].expand(len(real), -1, -1, -1)
    return torch.cat([real, newer], -1)
