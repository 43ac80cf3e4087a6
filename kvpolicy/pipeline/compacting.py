"""Runs the compactor of a pipeline, and checks what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.compactions import checked_bias, checked_compaction, checked_remainder
from kvpolicy.pipeline.title import Titles
from kvpolicy.stages.compaction import AddsBias, Compactor
from kvpolicy.stages.selection import Selection


class Compacting:
    """The last stage of a `Pipeline`, which has the compactor."""

    if TYPE_CHECKING:
        # Types alone see these: the pipeline has them as fields.
        @property
        def compactor(self) -> Compactor: ...  # noqa: D102
        @property
        def titles(self) -> Titles: ...  # noqa: D102

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Write the selected rows into a smaller cache."""
        with at_work(self.titles["compactor"], keys, values, selection, observation):
            compacted = self.compactor.compact(keys, values, selection, observation)
        return checked_compaction(self.titles["compactor"], compacted, keys, values, selection)

    def remainder(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N Dv"]]:
        """Return the key and the value that stand for what each head evicts."""
        compactor: Any = self.compactor
        with at_work(self.titles["compactor"], keys, values, selection, observation):
            found = compactor.remainder(keys, values, selection, observation)
        return checked_remainder(self.titles["compactor"], found, keys, values)

    def compact_with_bias(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
        bias: Float[Tensor, "B N S"] | None,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"], Float[Tensor, "B N K"] | None]:
        """Write the selected rows, with a bias for each if the compactor gives them one.

        `bias` is what attention adds to the logits of the rows now; None adds nothing.
        """
        if not isinstance(self.compactor, AddsBias):
            return *self.compact(keys, values, selection, observation), None
        title, given = self.titles["compactor"], (keys, values, selection, observation)
        with at_work(title, *given, bias):
            new_keys, new_values, new_bias = self.compactor.compact_with_bias(*given, bias)
        checked_compaction(title, (new_keys, new_values), keys, values, selection)
        return new_keys, new_values, checked_bias(title, new_bias, keys, selection)
