"""Decoding on a CPU: the query heads that share a key/value head become rows of one product.

transformers folds so where there is a mask (`pack_gqa`); without one it lets PyTorch's grouped
attention read every key once for each query head. Both are the same softmax over the same keys,
but round differently: so nothing is folded before something was evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def can_fold(
    wrapped: Callable[..., Any], query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]
) -> bool:
    """Whether a call of `wrapped` is plain attention of one unmasked query of grouped heads."""
    return (
        wrapped is sdpa_attention_forward
        and mask is None
        and query.shape[2] == 1
        and query.shape[1] != key.shape[1]
        and query.device.type == "cpu"
        and not any(kwargs.get(extra) for extra in ("dropout", "softcap", "output_attentions"))
        and all(kwargs.get(extra) is None for extra in ("s_aux", "sinks", "position_bias"))
    )


def folded_attention(
    query: Float[Tensor, "B H 1 D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    scaling: float | None,
) -> Float[Tensor, "B 1 H Dv"]:
    """Attend with the query heads of a group as that many queries of one head.

    >>> import torch
    >>> values = torch.arange(4.0).view(1, 2, 2, 1)
    >>> folded_attention(torch.zeros(1, 4, 1, 1), torch.ones(1, 2, 2, 1), values, None).flatten()
    tensor([0.5000, 0.5000, 2.5000, 2.5000])
    """
    batch, heads, _, dim = query.shape
    rows = query.reshape(batch, key.shape[1], -1, dim)
    output = F.scaled_dot_product_attention(rows, key, value, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])
