"""Attention over uneven heads, which hold different numbers of positions."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups, require_sinks

__all__ = ["ragged_attention"]


def ragged_attention(
    queries: Float[Tensor, "B H Q D"],
    ragged_keys: Float[Tensor, "R D"],
    ragged_values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    keys: Float[Tensor, "B N T D"],
    values: Float[Tensor, "B N T Dv"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    padding: Int[Tensor, " B"] | None = None,
    extra_keys: Float[Tensor, "B N D"] | None = None,
    extra_values: Float[Tensor, "B N Dv"] | None = None,
    extra_bias: Float[Tensor, "B N"] | None = None,
    ragged_bias: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to each head's ragged rows, and causally to a dense tail of T positions behind them.

    `ragged_keys` and `ragged_values` hold the R rows of all heads one behind another: those of
    sequence 0, head 0 first. `lengths`, on the CPU, says how many rows each head has. The Q queries
    are those of the last Q positions of the tail. The first `padding` tail positions of a sequence
    are no tokens. One softmax runs over the ragged rows and the tail, in float32, or in
    float64 if the queries are. A query that sees nothing gives zeros.

    With `softcap` c, logits x become c tanh(x / c). `sinks` has a learned sink for each query head:
    one more logit in each softmax of the head, of value zero.

    `extra_keys`, `extra_values` and `extra_bias` go together. They are one more row of each head,
    which every query sees. Its logit is that of its key, capped, plus its bias; with a bias of -inf
    the head has no such row. They may have another dtype than queries and keys. `ragged_bias` is
    added to the capped logits of the ragged rows.

    Raises ValueError if the shapes do not fit, or if `lengths` is not on the CPU.

    >>> import torch
    >>> queries = torch.zeros(1, 2, 1, 1)
    >>> ragged, tail = torch.tensor([[3.0], [5.0], [7.0]]), torch.ones(1, 2, 1, 1)
    >>> ragged_attention(
    ...     queries, ragged, ragged, torch.tensor([[1, 2]]), tail, tail, scaling=1.0).flatten()
    tensor([2.0000, 4.3333])
    """
    batch, heads, count, _ = queries.shape
    require_groups(heads, keys.shape[1])
    require(
        lengths.shape == keys.shape[:2] and keys.shape[0] == batch,
        f"lengths {tuple(lengths.shape)} do not fit keys {tuple(keys.shape)}",
    )
    require(
        lengths.device.type == "cpu",
        f"lengths must be on the CPU, not on {lengths.device}: the host cuts the rows up by them",
    )
    require(
        int(lengths.sum()) == len(ragged_keys) == len(ragged_values),
        f"lengths add up to {int(lengths.sum())}, but there are {len(ragged_keys)} ragged keys and "
        f"{len(ragged_values)} ragged values",
    )
    require(
        1 <= count <= keys.shape[2],
        f"{count} queries need at least 1 and at most as many as the keys of the tail, which are "
        f"{keys.shape[2]}",
    )
    require_sinks(sinks, queries)
    require(
        ragged_bias is None or len(ragged_bias) == len(ragged_keys),
        f"there are {len(ragged_keys)} ragged keys, and another number of biases",
    )
    extra = (extra_keys, extra_values, extra_bias)
    there = [each for each in extra if each is not None]
    require(
        len(there) in (0, 3), "an extra row has a key, a value and a bias: give all three or none"
    )
    require(
        all(each.shape[:2] == lengths.shape for each in there),
        f"extra rows {[tuple(each.shape) for each in there]} do not fit the {tuple(lengths.shape)} "
        "heads",
    )
    tensors = (queries, ragged_keys, ragged_values, keys, values)
    given = (*tensors, *(extra for extra in (padding, sinks) if extra is not None))
    return implementation(ragged_attention, *given)(
        queries, ragged_keys, ragged_values, lengths, keys, values,
        scaling=scaling, softcap=softcap, sinks=sinks, padding=padding,
        extra_keys=extra_keys, extra_values=extra_values, extra_bias=extra_bias,
        ragged_bias=ragged_bias,
    )  # fmt: skip
