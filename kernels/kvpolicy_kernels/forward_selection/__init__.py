"""Forward selection: add positions that bring a group's output back, by the error of the set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Bool, Float, Float32, Shaped
from torch import Tensor

from kvpolicy_kernels.checks import require, require_factors, require_groups, require_sinks
from kvpolicy_kernels.forward_selection import reference
from kvpolicy_kernels.forward_selection.queries import Queries

__all__ = ["Queries", "forward_selection", "query_outputs", "set_error"]


def forward_selection(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Bool[Tensor, "B N S"],
    counts: Sequence[int],
    *,
    by_mass: bool = False,
    root: bool = False,
    width: int = 1,
) -> Float32[Tensor, "B N S"]:
    """Return scores by which the positions that were added first come first.

    The `held` positions of each key/value head are kept anyway. Each round adds those that lower
    the error of the set most, until the head holds as many as `counts` says for this round; gains
    are averaged over `width` neighbours before. If the set is K, a query's error is

        e_K = || sum_h R_h (o_K - o) ||,    o_K = sum_(i in K) a_i v_i / sum_(i in K) a_i

    over the query heads h of the group: what the layer's output changes by if all others are
    evicted. The objective is sum_m weights_m e_K^2, or sum_m weights_m e_K with `root`. With
    `by_mass` the first round adds the most attended positions.

    A score is the gain with which a position was added. Where one would be more than that of a
    position of an earlier round, all of its round are lowered alike. What was never added has its
    gain in the last round, lowered in the same way. Held positions have the largest score.

    Raises ValueError if the shapes do not fit, or unless counts rise.

    >>> import torch
    >>> values = torch.tensor([[[[0.0], [1.0], [1.0], [9.0]]]])
    >>> asked = Queries(torch.zeros(1, 1, 1, 1), torch.ones(1, 1), torch.tensor([4]), scaling=1.0)
    >>> nothing = torch.zeros(1, 1, 4, dtype=torch.bool)
    >>> order = forward_selection(asked, torch.zeros(1, 1, 4, 1), values, None, nothing, [1, 2])
    >>> order.argsort(descending=True)[0, 0, :2]
    tensor([1, 2])
    """
    _check(queries, keys, values, factors, held)
    rising = all(first < second for first, second in pairwise(counts))
    require(
        rising and len(counts) > 0 and counts[0] >= 0 and counts[-1] <= keys.shape[2],
        f"counts must rise from round to round, within 0 ... {keys.shape[2]}, not {list(counts)}",
    )
    return reference.forward_selection(
        queries, keys, values, factors, held, counts, by_mass=by_mass, root=root, width=width
    )


def set_error(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Bool[Tensor, "B N S"],
    *,
    root: bool = False,
) -> Float[Tensor, "B N"]:
    """Return the objective of `forward_selection` if each key/value head keeps the `held` rows.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> values = torch.tensor([[[[0.0], [1.0], [1.0], [9.0]]]])
    >>> asked = Queries(torch.zeros(1, 1, 1, 1), torch.ones(1, 1), torch.tensor([4]), scaling=1.0)
    >>> held = torch.tensor([[[True, False, False, True]]])
    >>> set_error(asked, torch.zeros(1, 1, 4, 1), values, None, held)
    tensor([[3.0625]])
    """
    _check(queries, keys, values, factors, held)
    return reference.set_error(queries, keys, values, factors, held, root=root)


def query_outputs(
    queries: Queries, keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"]
) -> Float[Tensor, "B H M Dv"]:
    """Return o = sum_i a_i v_i of each query, in float32, or in float64 as the queries are.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> one = Queries(torch.zeros(1, 1, 1, 1), torch.ones(1, 1), torch.tensor([2]), scaling=1.0)
    >>> query_outputs(one, torch.zeros(1, 1, 2, 1), torch.tensor([[[[1.0], [4.0]]]]))
    tensor([[[[2.5000]]]])
    """
    _check(queries, keys, values, None, keys[..., 0])
    return reference.query_outputs(queries, keys, values)


def _check(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Shaped[Tensor, "B N S"],
) -> None:
    rows, weights, seen = queries.rows, queries.weights, queries.seen
    require(
        rows.shape[0] == keys.shape[0] and rows.shape[-1] == keys.shape[-1],
        f"queries {tuple(rows.shape)} and keys {tuple(keys.shape)} differ in batch or head dim",
    )
    require_groups(rows.shape[1], keys.shape[1])
    require(
        values.shape[:3] == keys.shape[:3] == held.shape,
        f"keys {tuple(keys.shape)}, values {tuple(values.shape)} and held {tuple(held.shape)} "
        "differ in batch, heads or positions",
    )
    require(
        weights.shape == (rows.shape[0], rows.shape[2]) and seen.shape == rows.shape[2:3],
        f"weights {tuple(weights.shape)} and seen {tuple(seen.shape)} do not fit {rows.shape[2]} "
        f"queries in {rows.shape[0]} rows",
    )
    require_sinks(queries.sinks, rows)
    require_factors(factors, keys.shape[1], rows.shape[1] // keys.shape[1] * values.shape[-1])
