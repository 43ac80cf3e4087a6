"""Compact: write the kept rows into a smaller cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import attrs
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import gather_kv, rows_per_block, spans


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


@runtime_checkable
class KeepsRemainder(Compactor, Protocol):
    """A compactor that keeps one more row of each head: it stands for what the head has evicted.

    The row has a part in the budget. Attention sees it with log(n) added to its logit, where n is
    how many positions the head has evicted so far. Of several evictions the mean is kept, weighted
    by their counts.
    """

    def remainder(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N Dv"]]:
        """Return the key and the value that stand for the rows that each head evicts now.

        In float32, or in float64 if the rows are. A head that evicts nothing gets any finite
        numbers.
        """
        ...


@runtime_checkable
class AddsBias(Compactor, Protocol):
    """A compactor that gives each kept row a bias, which attention adds to the row's logit."""

    def compact_with_bias(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
        bias: Float[Tensor, "B N S"] | None,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"], Float[Tensor, "B N K"]]:
        """Return the keys and values that `compact` returns, and the bias of each row.

        `bias` is what earlier evictions gave to the rows; None where it is 0. The bias returned is
        in float32, or in float64 if the rows are. It replaces the one before. Rows beyond a head's
        length may hold any finite numbers.
        """
        ...


@attrs.frozen(kw_only=True)
class GatherCompactor:
    """Copies the kept keys and values, unchanged, into a new dense cache."""

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return copies of the kept rows."""
        return gathered(keys, values, selection)


@attrs.frozen(kw_only=True, eq=False)
class Evicted:
    """The rows that a selection evicts. E is the largest number that one head evicts.

    A head that evicts fewer has fillers at the end. For a filler `is_row` is False, `rows` holds S,
    and keys and values hold row 0. `all_keys` and `all_values` are those of the whole layer.
    `alike` says that all heads are known to evict E, so that there are no fillers.
    """

    rows: Int[Tensor, "B N E"]
    all_keys: Float[Tensor, "B N S D"]
    all_values: Float[Tensor, "B N S Dv"]
    alike: bool = False

    @property
    def is_row(self) -> Bool[Tensor, "B N E"]:
        """Which rows are no fillers."""
        return self.rows < self.all_keys.shape[2]

    def blocks_of(
        self, table: Float[Tensor, "B N S D"]
    ) -> Iterator[tuple[slice, Float[Tensor, "B N e D"]]]:
        """Yield the evicted rows of `all_keys` or `all_values`, and their places in E, in blocks.

        All of them together can be as large as the layer.
        """
        # A compactor holds a block, and two more in float64.
        step = rows_per_block(8 * table[:, :, 0].numel(), table.device)
        for block in spans(0, self.rows.shape[2], step):
            rows = self.rows[:, :, block]
            if not self.alike:
                rows = rows.where(rows < table.shape[2], 0)
            yield block, gather_kv(table, table[..., :1], rows)[0]


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
    """Gather the kept rows, and return what `merge` makes of them and of the evicted rows.

    Returns the kept rows unchanged if no head evicts a row, or if no head keeps one.

    >>> import torch
    >>> keys = torch.tensor([[[[1.0], [2.0], [5.0]]]])
    >>> first = Selection(indices=torch.tensor([[[0]]]), lengths=torch.tensor([[1]]))
    >>> def add(keys, values, evicted):
    ...     for _, some in evicted.blocks_of(evicted.all_values):
    ...         values = values + some.sum(2, keepdim=True)
    ...     return keys, values
    >>> merged(keys, keys, first, add)
    (tensor([[[[1.]]]]), tensor([[[[8.]]]]))
    """
    kept_keys, kept_values = gathered(keys, values, selection)
    length = keys.shape[2]
    rows = selection.evicted(length)
    if rows.shape[2] == 0 or kept_keys.shape[2] == 0:
        return kept_keys, kept_values
    evicted = Evicted(rows=rows, all_keys=keys, all_values=values, alike=selection.is_full)
    return merge(kept_keys, kept_values, evicted)


def gathered(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], selection: Selection
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Return copies of the kept rows. Beyond a head's length they repeat row S - 1."""
    return gather_kv(keys, values, selection.rows(keys.shape[2]))
