"""A first prompt that is read sparsely: it attends to the blocks that a pattern chooses."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.attention.sparse import SparsePrompt, read_sparsely
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.mask_memo import MaskMemo
from kvpolicy.observation.logits import Logits
from kvpolicy.prefill.pattern import PrefillPattern


def first_prompt(
    pattern: PrefillPattern,
    call: Call,
    rows: tuple[Float[Tensor, "B H S D"], Float[Tensor, "B N S D"], Float[Tensor, "B N S Dv"]],
    mask: Any,
    logits: Logits,
    *,
    slots: Slots,
    masks: MaskMemo,
    layer: int,
) -> SparsePrompt | None:
    """Return what the queries of a first prompt attend to; None if all its rows are short.

    `rows` are queries, keys and values. Raises UnsupportedModelError for what such attention lacks.
    """
    if logits.sinks is not None:
        raise UnsupportedModelError(
            f"attention layer {layer} uses learned attention sinks (s_aux); sparse "
            "prefill does not support them. Use prefill=None."
        )
    lengths, (query, keys, values) = slots.lengths, rows
    if max(lengths) <= pattern.dense_up_to:
        return None
    call.refuse_what_is_not_computed()
    if query.requires_grad and torch.is_grad_enabled():
        raise UnsupportedModelError(
            "sparse prefill has no gradients. Run under torch.no_grad(), or use prefill=None."
        )
    masks.check_causal(mask, lengths)
    return read_sparsely(pattern, query.detach(), keys, values, lengths, logits)
