"""Attention where every head holds a number of positions of its own."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups, require_sinks

__all__ = ["ragged_attention"]


def ragged_attention(
    queries: Float[Tensor, "B H Q D"],
    prefix_keys: Float[Tensor, "R D"],
    prefix_values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    keys: Float[Tensor, "B N T D"],
    values: Float[Tensor, "B N T Dv"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    padding: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to each head's own prefix, and causally to a dense tail that all heads share.

    The prefixes lie one after another, row by row and head by head: `lengths` (on the CPU) of them,
    R in all. The Q queries are the last of the T tail positions. The first `padding` tail positions
    of a row are no tokens; a query that sees nothing gives zeros. Both parts are normalised
    together through their log-sum-exps, in float32 or, for doubles, in float64. A head's sink is
    one more logit of each of its queries, of value zero.

    >>> import torch
    >>> queries = torch.zeros(1, 2, 1, 1)
    >>> prefix, tail = torch.tensor([[3.0], [5.0], [7.0]]), torch.ones(1, 2, 1, 1)
    >>> ragged_attention(
    ...     queries, prefix, prefix, torch.tensor([[1, 2]]), tail, tail, scaling=1.0).flatten()
    tensor([2.0000, 4.3333])
    """
    batch, heads, count, _ = queries.shape
    require_groups(heads, keys.shape[1])
    require(
        lengths.shape == keys.shape[:2] and keys.shape[0] == batch,
        f"lengths {tuple(lengths.shape)} do not fit keys {tuple(keys.shape)}",
    )
    require(lengths.device.type == "cpu", "lengths belong on the CPU: they cut the prefix up")
    require(
        int(lengths.sum()) == len(prefix_keys) == len(prefix_values),
        f"lengths add up to {int(lengths.sum())}, the prefix has {len(prefix_keys)} rows",
    )
    require(
        1 <= count <= keys.shape[2],
        f"{count} queries need as many keys in the tail, which has {keys.shape[2]}",
    )
    require_sinks(sinks, queries)
    tensors = (queries, prefix_keys, prefix_values, keys, values)
    given = (*tensors, *(extra for extra in (padding, sinks) if extra is not None))
    return implementation(ragged_attention, *given)(
        queries, prefix_keys, prefix_values, lengths, keys, values,
        scaling=scaling, softcap=softcap, sinks=sinks, padding=padding,
    )  # fmt: skip
