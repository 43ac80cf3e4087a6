"""Compact: write what is kept into a smaller cache."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import gather_kv


@runtime_checkable
class Compactor(Protocol):
    """Turns a selection into a smaller cache."""

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the keys and values of the kept rows, in the order of the selection.

        Rows beyond a head's length hold anything finite. The observation is what led to the
        selection; its keys differ from `keys`, which are as they are stored, where a policy
        renumbers positions.
        """
        ...


@attrs.frozen(kw_only=True)
class GatherCompactor:
    """Copies the kept keys and values, unchanged, into a new dense cache."""

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return copies of the kept rows."""
        return gather_kv(keys, values, selection.indices.clamp(max=keys.shape[2] - 1))
