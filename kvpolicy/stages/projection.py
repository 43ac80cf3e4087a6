"""The output projection as heads and their groups see it, factorised once per weight."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvpolicy_kernels import head_factors
from kvpolicy_kernels.chunking import rows_per_block, spans

_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float[Tensor, "H R Dv"]:
    """Return the R factor of every head's columns of `weight`, remembered while `weight` lives.

    A weight that has changed since is factorised anew. Its version counter would not tell: merging
    adapters writes through `.data`.
    """
    mark = (weight.dtype, weight.device, _fingerprint(weight.detach()))
    remembered = _factors.setdefault(weight, {})
    known = remembered.get(heads)
    if known is None or known[0] != mark:
        known = remembered[heads] = (mark, head_factors(weight.detach(), heads))
    factors: Tensor = known[1]
    return factors


def group_factors(
    weight: Float[Tensor, "M columns"], *, groups: int, dim: int
) -> Float[Tensor, "N R columns_of_a_group"]:
    """Return R of the columns of all query heads that share a key/value head, for each of those.

    `groups` counts the query heads of a key/value head, `dim` the channels of a value.
    ||R_g x|| = ||sum_h W_h x_h|| for x the x_h of a group's heads, one after another.

    >>> group_factors(torch.eye(16), groups=2, dim=4).shape
    torch.Size([2, 8, 8])
    """
    return output_factors(weight, weight.shape[1] // (groups * dim))


@torch.no_grad()
def joint_errors(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "N R columns_of_a_group"] | None,
) -> Float[Tensor, "B N S"]:
    """Return the error behind the output projection if a key/value head loses a position.

    e_i = ||sum_h odds_hi W_h (o_h - v_i)|| over the query heads h of its group, with the odds
    a / (1 - a) of being attended: what renormalised attention changes exactly. `factors` are those
    of `group_factors`; None measures in value space, where heads do not mix. It walks over
    positions in blocks, in the precision of `odds`.

    >>> odds, values = torch.ones(1, 2, 2), torch.tensor([[[[0.0], [3.0]]]])
    >>> joint_errors(odds, values, torch.full((1, 2, 1), 1.5), torch.tensor([[[1.0, 1.0]]]))
    tensor([[[3., 3.]]])
    """
    batch, kv_heads, positions, dim = values.shape
    odds = odds.unflatten(1, (kv_heads, -1))
    outputs = output.to(odds.dtype).unflatten(1, (kv_heads, -1))[:, :, None]
    errors = odds.new_empty(batch, kv_heads, positions)
    floats = batch * kv_heads * outputs.shape[3] * dim
    for s in spans(0, positions, rows_per_block(2 * floats, values.device)):
        missing = outputs - values[:, :, s, None].to(odds.dtype)
        changes = (missing * odds[..., s, None].transpose(2, 3)).flatten(-2)
        if factors is not None:
            changes = changes @ factors.mT.to(odds.dtype)
        errors[..., s] = torch.linalg.vector_norm(changes, dim=-1)
    return errors


def _fingerprint(weight: Float[Tensor, "M columns"]) -> float:
    """Return a sum in which every entry counts with a factor of its own."""
    rows, columns = (
        torch.linspace(1, 2, size, device=weight.device, dtype=torch.float32)
        for size in weight.shape
    )
    # A block of rows at a time: a half-precision weight is not copied whole.
    products = [block.float() @ columns for block in weight.split(512)]
    return float(rows @ torch.cat(products))
