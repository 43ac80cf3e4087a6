"""Group: reduce the scores of the query heads of a group to one for their key/value head."""

from __future__ import annotations

from typing import Literal

from attrs.validators import optional
from jaxtyping import Float
from torch import Tensor

from kvpolicy.options import one_of
from kvpolicy_kernels import group_scores

Group = Literal["mean", "max", "sum"]
"""How the scores of a group of query heads are reduced to one."""

LayerGroup = Literal["mean", "max"]
"""How the scores of layers that share keys and values are reduced to one."""

layer_group = optional(one_of("mean", "max"))
"""Validates a `LayerGroup`, or None."""

GroupOrder = Literal["before", "after"]
"""Whether groups are reduced before or after scores are smoothed over positions."""


def order_of(group: Group) -> GroupOrder:
    """Return what the authors of SnapKV do where it matters: they take a maximum before pooling.

    For a mean and a sum, averages of neighbours give the same before and after.

    >>> order_of("max"), order_of("mean")
    ('before', 'after')
    """
    # A group that is refused later may be no string.
    return "before" if isinstance(group, str) and group == "max" else "after"


def spread_groups(scores: Float[Tensor, "B N S"], heads: int) -> Float[Tensor, "B H S"]:
    """Give the score of a key/value head to each of its query heads, `heads` in all.

    >>> import torch
    >>> spread_groups(torch.tensor([[[1.0], [2.0]]]), 4).flatten()
    tensor([1., 1., 2., 2.])
    """
    return scores.repeat_interleave(heads // scores.shape[1], dim=1)


def reduce_groups(
    scores: Float[Tensor, "B H S"], heads: int, group: Group
) -> Float[Tensor, "B N S"]:
    """Reduce the scores of H query heads to `heads` key/value heads.

    >>> import torch
    >>> reduce_groups(torch.tensor([[[1.0], [3.0]]]), 1, "mean")
    tensor([[[2.]]])
    """
    if scores.stride(1) == 0 and group != "sum":
        # One score for all heads, which is their mean and their maximum.
        return scores[:, :heads]
    return group_scores(scores, heads, group)


def reduce_readers(
    scores: Float[Tensor, "B H S"],
    heads: int,
    readers: int,
    group: Group,
    layer_group: LayerGroup | None,
) -> Float[Tensor, "B N S"]:
    """Reduce the query heads of all `readers`, the layers that attend with the same keys.

    `layer_group` reduces the layers behind the heads of each; None: all heads are one group.

    >>> import torch
    >>> scores = torch.tensor([[[1.0], [3.0], [5.0], [5.0]]])
    >>> reduce_readers(scores, 1, 2, "mean", "max")
    tensor([[[5.]]])
    """
    if layer_group is None or readers == 1:
        return reduce_groups(scores, heads, group)
    return reduce_groups(reduce_groups(scores, heads * readers, group), heads, layer_group)
