"""Compact: write the kept rows into a smaller cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import attrs
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import gather_kv


@runtime_checkable
class Compactor(Protocol):
    """Writes the selected rows into a smaller cache."""

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the keys and values of the kept rows, in the order of the selection.

        Rows beyond a head's length may hold any finite numbers. `observation` is what the scorer
        was shown. With `slot_positions`, its keys differ from `keys`: the keys of the observation
        are rotated to their slots, and `keys` are as they are stored.
        """
        ...


@attrs.frozen(kw_only=True)
class GatherCompactor:
    """Copies the kept keys and values, unchanged, into a new dense cache."""

    capturable: ClassVar[bool] = True

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return copies of the kept rows."""
        return gathered(keys, values, selection)


class Evicted(NamedTuple):
    """The rows that a selection evicts. E is the largest number that one head evicts.

    A head that evicts fewer has fillers at the end. For a filler `is_row` is False, `rows` holds S,
    and `keys` and `values` hold row 0.
    """

    rows: Int[Tensor, "B N E"]
    is_row: Bool[Tensor, "B N E"]
    keys: Float[Tensor, "B N E D"]
    values: Float[Tensor, "B N E Dv"]


Merge: TypeAlias = Callable[[Tensor, Tensor, Evicted], tuple[Tensor, Tensor]]
"""Takes the kept keys [B N K D], the kept values [B N K Dv] and the evicted rows.

Returns the keys and values to keep instead, in the same shapes.
"""


def merged(
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    selection: Selection,
    merge: Merge,
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Gather the kept and the evicted rows, and return what `merge` makes of them.

    Returns the kept rows unchanged if no head evicts a row, or if no head keeps one.

    >>> import torch
    >>> keys = torch.tensor([[[[1.0], [2.0], [5.0]]]])
    >>> first = Selection(indices=torch.tensor([[[0]]]), lengths=torch.tensor([[1]]))
    >>> def add(keys, values, evicted):
    ...     return keys, values + evicted.values.sum(2, keepdim=True)
    >>> merged(keys, keys, first, add)
    (tensor([[[[1.]]]]), tensor([[[[8.]]]]))
    """
    kept_keys, kept_values = gathered(keys, values, selection)
    length = keys.shape[2]
    rows = selection.evicted(length)
    if rows.shape[2] == 0 or kept_keys.shape[2] == 0:
        return kept_keys, kept_values
    is_row = rows < length
    evicted = gather_kv(keys, values, rows.where(is_row, 0))
    return merge(kept_keys, kept_values, Evicted(rows, is_row, *evicted))


def gathered(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], selection: Selection
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Return copies of the kept rows. Beyond a head's length they repeat row S - 1."""
    return gather_kv(keys, values, selection.rows(keys.shape[2]))
