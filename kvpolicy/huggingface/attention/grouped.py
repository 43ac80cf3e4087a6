"""Decoding on a CPU: the query heads that share a key/value head become rows of one product.

transformers does the same where there is a mask (`pack_gqa`). Without a mask PyTorch's grouped
attention reads every key once for each query head. Both are the same softmax over the same keys,
but they round differently. Until a layer has evicted, its attention is the model's own, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvpolicy.observation.logits import Logits


def grouped_attention(
    query: Float[Tensor, "B H 1 D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    scaling: float,
) -> Float[Tensor, "B 1 H Dv"]:
    """Attend with the query heads of a group as that many queries of one head.

    >>> import torch
    >>> values = torch.arange(4.0).view(1, 2, 2, 1)
    >>> grouped_attention(torch.zeros(1, 4, 1, 1), torch.ones(1, 2, 2, 1), values, 1.0).flatten()
    tensor([0.5000, 0.5000, 2.5000, 2.5000])
    """
    batch, heads, _, dim = query.shape
    rows = query.reshape(batch, key.shape[1], -1, dim)
    output = F.scaled_dot_product_attention(rows, key, value, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])


def attend_grouped(
    own: Callable[..., Any],
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    mask: Any,
    logits: Logits,
    kwargs: dict[str, Any],
) -> Float[Tensor, "B 1 H Dv"] | None:
    """Return `grouped_attention` in place of a call of `own`, the model's attention function.

    Returns None unless that call is plain attention of one unmasked query of grouped heads on a
    CPU.
    """
    if (
        own is not sdpa_attention_forward
        or mask is not None
        or query.shape[2] != 1
        or query.shape[1] == key.shape[1]
        or query.device.type != "cpu"
        or any(kwargs.get(extra) for extra in ("dropout", "softcap", "output_attentions"))
        or any(kwargs.get(extra) is not None for extra in ("s_aux", "sinks", "position_bias"))
    ):
        return None
    return grouped_attention(query, key, value, logits.scaling)
