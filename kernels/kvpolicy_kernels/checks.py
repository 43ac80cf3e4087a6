"""Checks at the doors: what was wrong, and the value."""

from __future__ import annotations

from torch import Tensor


def require(holds: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not holds:
        raise ValueError(message)


def require_groups(heads: int, kv_heads: int) -> None:
    """Raise ValueError unless every key/value head serves equally many query heads."""
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        f"{heads} query heads do not divide among {kv_heads} key/value heads",
    )


def require_window(queries: Tensor, keys: Tensor) -> None:
    """Raise ValueError unless queries [B H W D] are a window over keys [B N S D]."""
    require(
        queries.shape[0] == keys.shape[0] and queries.shape[-1] == keys.shape[-1],
        f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} differ in batch or dim",
    )
    require_groups(queries.shape[1], keys.shape[1])
    window, positions = queries.shape[2], keys.shape[2]
    require(
        1 <= window <= positions,
        f"a window of {window} queries needs 1 <= window <= positions, which are {positions}",
    )


def require_sinks(sinks: Tensor | None, queries: Tensor) -> None:
    """Raise ValueError unless every head of queries [B H W D] has one sink, or none has."""
    require(
        sinks is None or sinks.shape == queries.shape[1:2],
        f"sinks {None if sinks is None else tuple(sinks.shape)} for {queries.shape[1]} query heads",
    )


def require_attention(attention: Tensor, values: Tensor) -> None:
    """Raise ValueError unless attention [B H S] is over the positions of values [B N S D]."""
    require(
        (attention.shape[0], attention.shape[2]) == (values.shape[0], values.shape[2]),
        f"attention {tuple(attention.shape)} and values {tuple(values.shape)} differ in batch "
        "or positions",
    )
    require_groups(attention.shape[1], values.shape[1])


def require_factors(factors: Tensor | None, heads: int, dim: int) -> None:
    """Raise ValueError unless factors [heads R dim], where given, fit heads and dim."""
    if factors is not None:
        require(
            factors.shape[0] == heads and factors.shape[-1] == dim,
            f"factors {tuple(factors.shape)} do not fit {heads} heads of dim {dim}",
        )
