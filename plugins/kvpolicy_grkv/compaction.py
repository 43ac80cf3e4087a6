"""Compact, and change the kept values so that the last queries get their old outputs back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_least, count, positive
from kvpolicy.stages.compaction import gathered
from kvpolicy.stages.selection import Selection
from kvpolicy_grkv.attention import attention_to_kept, last_queries
from kvpolicy_kernels import query_outputs, rows_per_block, spans

SMALLEST = 1e-8
"""The smallest ridge. Rows of X may be equal, so that X X^T has no inverse; it is rounded by about
M^2 x 2e-16, which is below this for all M up to 5,000."""


@attrs.frozen(kw_only=True)
class ValueFittingCompactor:
    """Copies the kept rows, and fits their values by ridge regression.

    X [M, K] is the attention of M queries to the K kept keys of a head, and O [M, Dv] their outputs
    before the eviction. The kept values V become those that minimize

        ||O - X V'||^2 + ridge ||V' - V||^2,    V' = V + X^T (X X^T + ridge I)^-1 (O - X V)

    The M queries are the last `queries` of those shown, of all query heads of the group. Keys do
    not change. A head that evicts nothing does not change.

    Peng et al., 2026, https://arxiv.org/abs/2605.31105 (see README).

    >>> from kvpolicy import Observation, Selection
    >>> values = torch.tensor([[[[0.0], [4.0], [6.0]]]])
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=values, values=values)
    >>> last = Selection(indices=torch.tensor([[[1, 2]]]), lengths=torch.tensor([[2]]))
    >>> fitted = ValueFittingCompactor(ridge=1e-6).compact(values, values, last, layer)[1]
    >>> fitted.mean(2)  # the output before was (0 + 4 + 6) / 3
    tensor([[[3.3333]]])
    """

    fits_values: ClassVar[bool] = True
    prefill_only: ClassVar[bool] = True

    ridge: float = attrs.field(
        default=1.0, converter=as_float, validator=[positive, at_least(SMALLEST)]
    )
    queries: int = attrs.field(default=32, validator=count)

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidValueError with `slot_positions`: queries then see keys elsewhere."""
        if settings["slot_positions"]:
            raise InvalidValueError(
                "compactor 'grkv' fits values to attention as it is before the eviction, but "
                "slot_positions=True gives the kept keys other positions. Leave out "
                "slot_positions, or use compactor='gather'"
            )

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the kept keys, and the values that fit."""
        kept_keys, kept_values = gathered(keys, values, selection)
        kept, length = kept_keys.shape[2], keys.shape[2]
        if kept == 0 or (kept == length and selection.is_full):
            return kept_keys, kept_values
        asked = last_queries(observation, self.queries)
        before = query_outputs(asked, keys, values)
        evicts = (selection.lengths.to(keys.device) < length)[..., None, None]
        groups = before.shape[1] // keys.shape[1]
        # The attention of a head's queries, their products with it, and the values.
        numbers = kept * (5 * groups * asked.rows.shape[2] + 6 * values.shape[-1])
        step = rows_per_block(numbers, keys.device, layer=keys.nbytes + values.nbytes)
        for n in spans(0, keys.shape[1], step):
            h = slice(n.start * groups, n.stop * groups)
            attention = attention_to_kept(
                asked.part(h, slice(None)), kept_keys[:, n], selection.indices[:, n]
            )
            old = kept_values[:, n].float()
            missing = before[:, h].float().unflatten(1, (-1, groups)).flatten(2, 3)
            fitted = old + _ridge(attention, missing - attention @ old, self.ridge)
            kept_values[:, n] = torch.where(
                evicts[:, n], fitted.to(values.dtype), kept_values[:, n]
            )
        return kept_keys, kept_values


def _ridge(
    attention: Float[Tensor, "B n M K"], missing: Float[Tensor, "B n M Dv"], ridge: float
) -> Float[Tensor, "B n K Dv"]:
    """Return X^T (X X^T + ridge I)^-1 R. All is in float64, as rows of X are alike."""
    attention = attention.double()
    products = attention @ attention.mT
    products.diagonal(dim1=-2, dim2=-1).add_(ridge)
    # The matrix is positive definite, so nothing needs to be read back to check it.
    factors, _ = torch.linalg.cholesky_ex(products)
    return (attention.mT @ torch.cholesky_solve(missing.double(), factors)).float()
