"""Reads rows back out of a backend's blocks, whatever its layout.

Backends arrange the numbers of a block as their kernels like them. A backend writes rows by
`do_kv_cache_update`, so it is given rows of known numbers once, and where these end up is the
layout.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError

_BASE = 128
"""All integers up to it have exact values in every floating point type of a cache."""


@attrs.frozen(kw_only=True, eq=False)
class Pages:
    """Where in a block each number of its keys and values stands."""

    keys: Int[Tensor, " C"]
    values: Int[Tensor, " Dv"]
    heads: int
    block: int

    @classmethod
    def of(cls, impl: Any, layer: Any, cache: Tensor, heads: int, dims: tuple[int, int]) -> Pages:
        """Find the layout in which `impl` writes into blocks like those of `cache`.

        Raises UnsupportedModelError where a block is no rearrangement of what is written.
        """
        block = cache.shape[2]
        places = [_places(impl, layer, cache, heads, dims, part) for part in (0, 1)]
        return cls(keys=places[0], values=places[1], heads=heads, block=block)

    def read(
        self, cache: Tensor, blocks: Int[Tensor, " count"], tokens: int
    ) -> tuple[Float[Tensor, "S N D"], Float[Tensor, "S N Dv"]]:
        """Return the keys and values of the first `tokens` tokens of some blocks."""
        pages = cache[blocks].reshape(len(blocks), -1)
        rows = (
            pages.index_select(1, places).view(len(blocks) * self.block, self.heads, -1)[:tokens]
            for places in (self.keys, self.values)
        )
        keys, values = rows
        return keys, values


def _places(
    impl: Any, layer: Any, cache: Tensor, heads: int, dims: tuple[int, int], part: int
) -> Int[Tensor, " numbers"]:
    """Return where in a block each number of the keys (part 0) or values (part 1) is written."""
    block, count = cache.shape[2], cache.shape[2] * heads * dims[part]
    codes = torch.zeros(cache[0].numel(), dtype=torch.long, device=cache.device)
    written, weight = torch.zeros_like(codes), 1
    slots = torch.arange(block, 2 * block, dtype=torch.long, device=cache.device)
    while weight < count:
        numbers = torch.arange(count, device=cache.device) // weight % _BASE + 1
        rows = [
            torch.zeros(block, heads, dim, dtype=cache.dtype, device=cache.device) for dim in dims
        ]
        rows[part] = numbers.view(block, heads, -1).to(cache.dtype)
        scratch = torch.empty_strided(
            (2, *cache.shape[1:]), cache.stride(), dtype=cache.dtype, device=cache.device
        ).zero_()
        impl.do_kv_cache_update(layer, *rows, scratch, slots)
        found = scratch[1].reshape(-1).float().round().long()
        written = found > 0
        codes += (found - 1).clamp(min=0) * weight
        weight *= _BASE
    places = written.nonzero()[:, 0]
    order = codes[places].argsort()
    if not torch.equal(codes[places][order], torch.arange(count, device=cache.device)):
        raise UnsupportedModelError(
            f"{layer.attn_backend.get_name()} does not keep keys and values as they are, so rows "
            "cannot be moved exactly. Use another attention backend."
        )
    return places[order]
