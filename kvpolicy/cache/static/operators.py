"""Operations that a captured step calls as a whole: what is inside is not traced."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.static.owners import owner_of
from kvpolicy_kernels import ragged_attention


def attend_ragged(
    queries: Float[Tensor, "B H 1 D"],
    ragged: tuple[Tensor, Tensor],
    lengths: list[int],
    tail: tuple[Tensor, Tensor],
    padding: Int[Tensor, " B"],
    scaling: float,
    softcap: float | None,
    sinks: Float[Tensor, " H"] | None,
) -> Float[Tensor, "B H 1 Dv"]:
    """Attend by `ragged_attention`; `ragged` and `tail` are keys and values."""
    found: Tensor = torch.ops.kvpolicy.attend_ragged(
        queries, *ragged, lengths, *tail, padding, scaling, softcap, sinks
    )
    return found


@cache
def register_attend_ragged() -> Any:
    """Make the operation known to PyTorch, the first time that a cache needs it."""

    def attend(
        queries: Tensor,
        ragged_keys: Tensor,
        ragged_values: Tensor,
        lengths: list[int],
        keys: Tensor,
        values: Tensor,
        padding: Tensor,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        return ragged_attention(
            queries,
            ragged_keys,
            ragged_values,
            torch.tensor(lengths, device="cpu").view(keys.shape[:2]),
            keys,
            values,
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
            padding=padding,
        )

    def shape_of(queries: Tensor, *tables: Any) -> Tensor:
        values: Tensor = tables[4]
        return values.new_empty((*queries.shape[:3], values.shape[3]))

    schema = (
        "(Tensor queries, Tensor ragged_keys, Tensor ragged_values, int[] lengths, Tensor keys, "
        "Tensor values, Tensor padding, float scaling, float? softcap, Tensor? sinks) -> Tensor"
    )
    operation = torch.library.custom_op(
        "kvpolicy::attend_ragged", attend, mutates_args=(), schema=schema
    )
    operation.register_fake(shape_of)
    return operation


def turn_sinks(
    keys: Float[Tensor, "B N C D"],
    of_sinks: Float[Tensor, "B N sinks D"],
    newest: Int[Tensor, "B 1 1"],
    number: int,
) -> None:
    """Write the keys of sinks, `of_sinks`, as a ring turns them for the newest position."""
    torch.ops.kvpolicy.turn_sinks(keys, of_sinks, newest, number)


@cache
def register_turn_sinks() -> Any:
    """Make the operation known to PyTorch, the first time that a cache needs it."""

    def turn(keys: Tensor, of_sinks: Tensor, newest: Tensor, number: int) -> None:
        keys[:, :, : of_sinks.shape[2]] = owner_of(number).turn(of_sinks, newest)

    schema = "(Tensor(a!) keys, Tensor of_sinks, Tensor newest, int number) -> ()"
    return torch.library.custom_op(
        "kvpolicy::turn_sinks", turn, mutates_args=("keys",), schema=schema
    )


def evict_one(
    queries: Float[Tensor, "B H 1 D"],
    rows: Any,
    settings: tuple[float, float | None, Tensor | None],
) -> None:
    """Let `rows`, a `StaticEvicting`, evict one token of each head.

    `settings` are the scale, soft cap and learned sinks of the attention.
    """
    tables = (rows.keys, rows.values, rows.known, rows.state)
    torch.ops.kvpolicy.evict_one(queries, *tables, *settings, rows.number)


@cache
def register_evict_one() -> Any:
    """Make the operation known to PyTorch, the first time that a cache needs it."""

    def evict(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        known: Tensor,
        state: Tensor | None,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
        number: int,
    ) -> None:
        owner_of(number).evict(queries, (keys, values, known, state), scaling, softcap, sinks)

    schema = (
        "(Tensor queries, Tensor(a!) keys, Tensor(b!) values, Tensor(c!) known, Tensor(d!)? state, "
        "float scaling, float? softcap, Tensor? sinks, int number) -> ()"
    )
    return torch.library.custom_op(
        "kvpolicy::evict_one",
        evict,
        mutates_args=("keys", "values", "known", "state"),
        schema=schema,
    )
