"""Compact, and fit a bias of each kept key and its value to the attention of the last queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_least, boolean, count, positive
from kvpolicy.stages.compaction import gathered
from kvpolicy.stages.selection import Selection
from kvpolicy_attentionmatching.attention import logits_of, sink_shares
from kvpolicy_kernels import rows_per_block, spans

SMALLEST = 1e-8
"""The smallest ridge. Rows of a matrix may be equal, so that its product has no inverse."""
LEAST = 1e-3
"""The least that a fitted factor of a kept key's mass may be."""


@attrs.frozen(kw_only=True)
class AttentionMatchingCompactor:
    """Copies the kept keys, and fits a bias of each and its value to the last queries.

    P [M, K] is the mass exp(q k scaling) of M queries at the K kept keys, as a share of the mass of
    all keys. The factors B of the kept keys' mass are those that bring all of it back, by ridge
    regression towards 1, and the bias is log B:

        min ||P B - 1||^2 + mass_ridge ||B - 1||^2

    X [M, K] is the attention with this bias, O [M, Dv] the outputs before the eviction. The values
    become those that minimize ||O - X V'||^2 + ridge ||V' - V||^2; with `values=False` they stay.

    Zweiger et al., 2026, https://arxiv.org/abs/2602.16284 (see README).

    >>> from kvpolicy import Observation, Selection
    >>> values = torch.tensor([[[[0.0], [4.0], [6.0]]]])
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=values, values=values)
    >>> last = Selection(indices=torch.tensor([[[1, 2]]]), lengths=torch.tensor([[2]]))
    >>> part = AttentionMatchingCompactor(mass_ridge=1e-6, ridge=1e-6)
    >>> _, fitted, bias = part.compact_with_bias(values, values, last, layer, None)
    >>> bias.exp(), fitted.mean(2)  # two keys weigh as much as three, and give (0 + 4 + 6) / 3
    (tensor([[[1.5000, 1.5000]]]), tensor([[[3.3333]]]))
    """

    fits_values: ClassVar[bool] = True
    prefill_only: ClassVar[bool] = True

    ridge: float = attrs.field(
        default=1.0, converter=as_float, validator=[positive, at_least(SMALLEST)]
    )
    mass_ridge: float = attrs.field(
        default=1.0, converter=as_float, validator=[positive, at_least(SMALLEST)]
    )
    queries: int = attrs.field(default=32, validator=count)
    values: bool = attrs.field(default=True, validator=boolean)

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidValueError with `slot_positions`: queries then see keys elsewhere."""
        if settings["slot_positions"]:
            raise InvalidValueError(
                "compactor 'attentionmatching' fits to attention as it is before the eviction, but "
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
        return self.compact_with_bias(keys, values, selection, observation, None)[:2]

    def compact_with_bias(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
        bias: Float[Tensor, "B N S"] | None,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"], Float[Tensor, "B N K"]]:
        """Return the kept keys, the values that fit, and the bias of each."""
        kept_keys, kept_values = gathered(keys, values, selection)
        length, rows = keys.shape[2], selection.rows(keys.shape[2])
        dtype = torch.promote_types(keys.dtype, torch.float32)
        kept_bias = torch.zeros(rows.shape, dtype=dtype, device=keys.device)
        if bias is not None:
            kept_bias = bias.gather(2, rows).to(dtype)
        kept = rows.shape[2]
        if kept == 0 or (kept == length and selection.is_full):
            return kept_keys, kept_values, kept_bias
        evicts = (selection.lengths.to(keys.device) < length)[..., None]
        is_row = selection.indices < length
        groups = observation.queries.shape[1] // keys.shape[1]
        asked = groups * min(self.queries, observation.window)
        # The logits of a head's queries and their exponentials, those kept, and their products.
        numbers = asked * (3 * length + 8 * kept) + 6 * kept * values.shape[-1]
        step = rows_per_block(numbers, keys.device, layer=keys.nbytes + values.nbytes)
        for n in spans(0, keys.shape[1], step):
            own = None if bias is None else bias[:, n]
            logits = logits_of(observation, keys[:, n], n, self.queries, own)
            mass = logits.logsumexp(-1)
            shares = (logits - mass[..., None]).exp()
            sink = sink_shares(observation, mass, n)[..., None]
            there = rows[:, n, None].expand(-1, -1, asked, -1)
            of_kept = shares.gather(3, there) * is_row[:, n, None]
            missing = 1 - of_kept.sum(-1, keepdim=True)
            factors = (1 + _ridge(of_kept, missing, self.mass_ridge)[..., 0]).clamp(min=LEAST)
            fitted_bias = kept_bias[:, n] + factors.log().to(dtype)
            kept_bias[:, n] = torch.where(evicts[:, n], fitted_bias, kept_bias[:, n])
            if not self.values:
                continue
            before = shares @ values[:, n].float() / (1 + sink)
            weights = of_kept * factors[:, :, None]
            # A query may see none of the kept rows.
            total = (weights.sum(-1, keepdim=True) + sink).clamp(min=torch.finfo(dtype).tiny)
            attention = weights / total
            old = kept_values[:, n].float()
            fitted = old + _ridge(attention, before - attention @ old, self.ridge)
            kept_values[:, n] = torch.where(
                evicts[:, n, :, None], fitted.to(values.dtype), kept_values[:, n]
            )
        return kept_keys, kept_values, kept_bias


def _ridge(
    matrix: Float[Tensor, "B n M K"], missing: Float[Tensor, "B n M C"], ridge: float
) -> Float[Tensor, "B n K C"]:
    """Return X^T (X X^T + ridge I)^-1 R. All is in float64, as rows of X are alike."""
    matrix = matrix.double()
    products = matrix @ matrix.mT
    products.diagonal(dim1=-2, dim2=-1).add_(ridge)
    # The matrix is positive definite, so nothing needs to be read back to check it.
    factors, _ = torch.linalg.cholesky_ex(products)
    return (matrix.mT @ torch.cholesky_solve(missing.double(), factors)).float()
