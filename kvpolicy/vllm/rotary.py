"""A model's rotary embedding as vLLM holds it: one table of cosines and sines."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy_kernels import rerotate_keys

_TOLERANCE = 2e-5


@attrs.frozen(eq=False)
class TableRotary:
    """The tables of a rotary module, of unit norm."""

    module: Any

    @property
    def interleaved(self) -> bool:
        """Whether channels 2j and 2j + 1 are a pair."""
        return not self.module.is_neox_style

    def tables(
        self, positions: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape R"], Float[Tensor, "*shape R"]]:
        """Return float32 cosines and sines, behind the end of the model's table too."""
        table = self.module.cos_sin_cache
        cosines, sines = _turned_on(table, positions.reshape(-1).to(table.device))
        spread = (
            each.repeat_interleave(2, -1) if self.interleaved else torch.cat([each, each], -1)
            for each in (cosines, sines)
        )
        found = [each.view(*positions.shape, -1).to(positions.device) for each in spread]
        return found[0], found[1]


def _turned_on(table: Tensor, positions: Int[Tensor, " P"]) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of positions, which may be behind the end of the table.

    Angles add: a position behind the end is the last one, turned by the rest.
    """
    last = table.shape[0] - 1
    cosines, sines = _unit(table, positions.clamp(max=last))
    beyond = (positions - last).clamp(min=0)
    if not int(beyond.max() if beyond.numel() else 0):
        return cosines, sines
    more, less = _turned_on(table, beyond)
    return cosines * more - sines * less, sines * more + cosines * less


def _unit(table: Tensor, rows: Int[Tensor, " P"]) -> tuple[Tensor, Tensor]:
    cosines, sines = table[rows].float().chunk(2, -1)
    norm = (cosines.square() + sines.square()).sqrt()
    return cosines / norm, sines / norm


def rotary_of(attention: nn.Module, heads: int, dim: int) -> TableRotary | None:
    """Return the rotary embedding of an attention module; None where it is none or not understood.

    It is tried: a key at one position must be the key at another, turned by the tables.
    """
    found = [each for each in attention.modules() if hasattr(each, "cos_sin_cache")]
    if len(found) != 1:
        return None
    rotary = TableRotary(found[0])
    try:
        return rotary if _explains(rotary, heads, dim) else None
    except Exception:  # noqa: BLE001 - a module of another make: it says nothing about its tables
        return None


@torch.no_grad()
def _explains(rotary: TableRotary, heads: int, dim: int) -> bool:
    table = rotary.module.cos_sin_cache
    row = torch.linspace(-1, 1, heads * dim, device=table.device, dtype=torch.float32).sin()
    near, far = (torch.tensor([place], device=table.device) for place in (3, 40))
    before, after = (_turned(rotary.module, place, row, dim) for place in (near, far))
    old, new = (rotary.tables(place[None, None]) for place in (near, far))
    turned = rerotate_keys(before, old, new, interleaved=rotary.interleaved)
    tolerance = max(_TOLERANCE, float(torch.finfo(table.dtype).eps) * 4)
    moved = float((after - before).abs().amax()) > 2 * tolerance
    return moved and float((turned - after).abs().amax()) <= tolerance


def _turned(
    module: Any, place: Int[Tensor, " 1"], row: Float[Tensor, " HD"], dim: int
) -> Float[Tensor, "1 H 1 D"]:
    """Return keys of one token behind the module, at a position."""
    rows = row[None].to(module.cos_sin_cache.dtype)
    _, keys = module.forward_native(place, rows.clone(), rows.clone())
    turned: Tensor = keys.float().view(1, -1, 1, dim)
    return turned
