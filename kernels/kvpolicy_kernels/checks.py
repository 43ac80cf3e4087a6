"""Checks of arguments that several doors make."""

from __future__ import annotations

from torch import Tensor


def require(holds: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not holds:
        raise ValueError(message)


def require_groups(heads: int, kv_heads: int) -> None:
    """Raise ValueError unless all key/value heads have groups of the same size."""
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        f"{heads} query heads do not divide among {kv_heads} key/value heads evenly",
    )


def require_window(queries: Tensor, keys: Tensor) -> None:
    """Raise ValueError unless queries [B H W D] are a window over keys [B N S D]."""
    require(
        queries.shape[0] == keys.shape[0] and queries.shape[-1] == keys.shape[-1],
        f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} differ in batch or head dim",
    )
    require_groups(queries.shape[1], keys.shape[1])
    window, positions = queries.shape[2], keys.shape[2]
    require(
        1 <= window <= positions,
        f"a window of {window} queries does not fit {positions} positions: it must have at least 1 "
        "query, and at most as many as there are positions",
    )


def require_weights(weights: Tensor, queries: Tensor) -> None:
    """Raise ValueError unless weights [W] or [B W] fit the queries [B H W D] of a window."""
    batch, _, window, _ = queries.shape
    require(
        tuple(weights.shape) in ((window,), (batch, window)),
        f"weights {tuple(weights.shape)} do not fit a window of {window} queries in {batch} "
        "sequences: they must have the window, or the sequences and the window",
    )


def require_sinks(sinks: Tensor | None, queries: Tensor) -> None:
    """Raise ValueError unless `sinks` is None or has a logit for each head of queries [B H W D]."""
    require(
        sinks is None or sinks.shape == queries.shape[1:2],
        f"sinks {None if sinks is None else tuple(sinks.shape)} do not fit {queries.shape[1]} "
        "query heads: each must have one",
    )


def require_attention(attention: Tensor, values: Tensor) -> None:
    """Raise ValueError unless attention [B H S] fits values [B N S D]."""
    require(
        (attention.shape[0], attention.shape[2]) == (values.shape[0], values.shape[2]),
        f"attention {tuple(attention.shape)} and values {tuple(values.shape)} differ in batch "
        "or positions",
    )
    require_groups(attention.shape[1], values.shape[1])


def require_factors(factors: Tensor | None, heads: int, dim: int) -> None:
    """Raise ValueError unless `factors` is None or has the shape [heads R dim]."""
    if factors is not None:
        require(
            factors.shape[0] == heads and factors.shape[-1] == dim,
            f"factors {tuple(factors.shape)} do not fit {heads} heads of dim {dim}",
        )
